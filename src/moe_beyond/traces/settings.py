"""Parameters of trace sources: the sections `traces`, `extract` and `assess` of params.yaml."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from moe_beyond.settings import Settings


class TransformersSource(Settings):
    """Live capture from a model that transformers can load."""

    model: str = ""
    """Hub id or local folder."""
    revision: str | None = None
    trust_remote_code: bool = False
    """Run code that comes with the model; leave it off unless you have read that code."""
    device_map: str = "cpu"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    prompts: str = "data/raw/prompts.jsonl"
    """JSON Lines with `prompt` and, if wanted, `id` and `domain`; or a text file with a prompt a line."""
    held_out_prompts: str | None = None
    """Prompts of another domain, kept for testing only; the same formats."""


class ImportSource(Settings):
    """Published traces."""

    format: str = "moe-beyond-csv"
    train: str = "data/raw/puffin"
    """Folder or archive whose prompts are split into train, validation and test."""
    held_out: str | None = "data/raw/webglm"
    """Folder or archive of another domain, kept for testing only."""


class TracesSettings(Settings):
    """Where traces come from."""

    source: Literal["reference", "transformers", "import"] = "reference"
    transformers: TransformersSource = TransformersSource()
    # `import` is a keyword of Python
    imported: ImportSource = Field(default=ImportSource(), alias="import")

    @model_validator(mode="after")
    def _source_is_complete(self) -> Self:
        if self.source == "transformers" and not self.transformers.model:
            raise ValueError("traces.transformers.model is empty; give a hub id or a folder")
        return self
