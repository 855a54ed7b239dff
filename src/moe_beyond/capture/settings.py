"""Parameters of trace sources: the sections `traces` and `extract` of params.yaml."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

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
    """JSON Lines, a JSON array, CSV or Parquet, with `id` and `domain` if you like; or text with a prompt a line."""
    prompt_field: str = Field(default="prompt", min_length=1)
    """Key or column of those files that holds the prompt."""
    held_out_prompts: str | None = None
    """Prompts of another domain, kept for testing only; the same formats."""


class ImportSource(Settings):
    """Published traces."""

    format: str = "moe-beyond-csv"
    train: str = "data/raw/puffin"
    """Folder or archive whose prompts are split into train, validation and test."""
    held_out: str | None = "data/raw/webglm"
    """Folder or archive of another domain, kept for testing only."""
    moe_layers: str | None = None
    """Layers with experts, such as `1-47` or `1,3,5`, instead of the config.json's, where the format says no layers."""
    expert_size: str | None = None
    """Bytes of one expert, or the GGUF type of its tensors, such as `Q4_K`, instead of the config.json's; as above."""


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


class ExtractSettings(Settings):
    """How live capture runs; `import` uses none of it but `privacy`."""

    english_prompts: int = Field(default=1300, ge=4)
    """Prompts cut from the reference model's held-out English; other models bring their own prompts."""
    code_prompts: int = Field(default=100, ge=1)
    """Prompts cut from Python code, the domain kept for testing only; reference model only."""
    min_prompt_tokens: int = Field(default=24, ge=1)
    max_prompt_tokens: int = Field(default=96, ge=1)
    """Prompts of the reference model have lengths in this range; prompts of other models are taken whole."""
    decode_tokens: int = Field(default=64, ge=0)
    """Tokens decoded, and routed, after each prompt; 0 traces the given text alone."""
    decoding: Literal["sampled", "greedy"] = "sampled"
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    batch_prompts: int = Field(default=50, ge=1)
    shard_prompts: int = Field(default=200, ge=1)
    """Prompts a file; memory holds one shard, and an interrupted capture loses at most one."""
    chat_template: bool = True
    """Wrap prompts in the tokenizer's chat template where it has one."""
    privacy: Literal["text", "ids", "routing"] = "text"
    """What a trace holds of its prompts: token texts, ids and hidden states, ids alone (the tokenizer turns them back),
    or neither."""
    weights: bool = True
    """Store combine weights beside the expert ids."""
    hidden_states: Literal["none", "gates", "all"] | None = None
    """Hidden states to keep: what each gate read (`gates`), or also what each decoder layer and the output head read
    (`all`); null: `all` of the reference model, `none` of others. They take hidden_size * 2 bytes a token and layer,
    twice that for `all`, and can tell the text: with a `privacy` other than `text` none are kept."""
    hidden_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the prompts whose hidden states are kept, drawn by name and seed."""
    hidden_layers: tuple[NonNegativeInt, ...] | None = Field(default=None, min_length=1)
    """Layers whose hidden states are kept: indices of the MoE layers, from 0; null: all."""
    workers: int = Field(default=1, ge=1)
    """Processes that capture shards side by side, each with the model; above 1, a Dask or Ray cluster that the
    environment names (`DASK_SCHEDULER_ADDRESS`, `RAY_ADDRESS`) takes them."""

    @property
    def kept_hidden(self) -> Literal["none", "gates", "all"]:
        """Hidden states that are kept, with what privacy allows."""
        return (self.hidden_states or "none") if self.privacy == "text" else "none"

    @model_validator(mode="after")
    def _ranges_are_possible(self) -> Self:
        if self.hidden_layers is not None and list(self.hidden_layers) != sorted(set(self.hidden_layers)):
            raise ValueError(f"extract.hidden_layers ({list(self.hidden_layers)}) must rise without repetition")
        if self.min_prompt_tokens > self.max_prompt_tokens:
            raise ValueError(
                f"extract.min_prompt_tokens ({self.min_prompt_tokens}) exceeds max_prompt_tokens "
                f"({self.max_prompt_tokens})"
            )
        return self
