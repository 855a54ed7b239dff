"""The base of every section of params.yaml.

Each package keeps its section's model in its own light `settings.py`; `config.py` assembles them.
"""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen, typed parameters; an unknown key is an error. The string below a field is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)
