"""params.yaml: the base of every section, and how a stage reads the sections that it uses.

Each package keeps its section's model in its own light `settings.py`. A stage names the sections it reads in a model of
its own, so that it depends on no others; `params.py` has all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moe_beyond.documents import read_plain
from moe_beyond.errors import InputError
from moe_beyond.yaml_documents import load_yaml

STAGES = (
    "reference",
    "extract",
    "assess",
    "split",
    "tune",
    "train",
    "export",
    "simulate",
    "verify",
    "report",
    "publish",
)
"""One word each for a stage of dvc.yaml, its script, its section of params.yaml and its folder under reports/."""


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Every random choice of every stage follows from it."""
DEFAULT_SEED = 7
_SHARED = ("seed", "numerics", "traces")


class Settings(BaseModel):
    """Frozen, typed parameters; an unknown key is an error. The string below a field is its description."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True, allow_inf_nan=False
    )


def flatten(value: dict[str, Any], separator: str = ".") -> dict[str, Any]:
    """Nested dicts as one, keys joined; lists stay values."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= {f"{key}{separator}{inner}": leaf for inner, leaf in flatten(item, separator).items()}
        else:
            flat[str(key)] = item
    return flat


Parameters = TypeVar("Parameters", bound=Settings)


def read_params(path: Path, model: type[Parameters]) -> Parameters:
    """Read and check the sections of the parameter file that a model names; the others are left to their stages.

    Raises:
        InputError: The file is missing or not YAML, a section or key is unknown, or a value is out of range; the
            message names the key, the value and what was expected.
    """
    try:
        raw = load_yaml(read_plain(path), str(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; run from the project's root") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected sections, found {type(raw).__name__}")
    return parse_params(raw, model, path.name)


def parse_params(raw: dict[str, Any], model: type[Parameters], where: str) -> Parameters:
    """Check parameters that were read from `where`. Raises InputError as `read_params` does."""
    for name in raw:
        if name not in (*STAGES, *_SHARED):
            raise InputError(f"{where}: {name}: unknown parameter; correct its name or remove it")
    known = {field.alias or name for name, field in model.model_fields.items()}
    try:
        return model.model_validate({name: value for name, value in raw.items() if name in known})
    except ValidationError as error:
        raise InputError("; ".join(_describe(detail, where) for detail in error.errors())) from error


def _describe(detail: Any, where: str) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{where}: {key}: unknown parameter; correct its name or remove it"
    message = detail["msg"].removeprefix("Value error, ")
    given = detail["input"]
    return f"{where}: {key}: {message}" + ("" if isinstance(given, dict) else f" (found {given!r})")
