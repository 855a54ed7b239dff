"""What to trace when the user brings a model: its files, and prompts from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moe_beyond.capture.models import ModelSource, load
from moe_beyond.capture.prompts import EncodedPrompt, encode, read_prompts
from moe_beyond.capture.shards import CaptureJob
from moe_beyond.errors import InputError

if TYPE_CHECKING:
    from moe_beyond.capture.settings import ExtractSettings, TransformersSource


def transformers_job(source: TransformersSource, settings: ExtractSettings, seed: int) -> CaptureJob:
    """How to trace a hub model or a local folder."""
    files = [source.prompts, *([source.held_out_prompts] if source.held_out_prompts else [])]
    return CaptureJob(
        model=model_of(source),
        model_id=source.model,
        source=f"captured with transformers over the prompts of {', '.join(files)}",
        licence="that of the prompts and of the model",
        settings=settings,
        seed=seed,
    )


def transformers_prompts(source: TransformersSource, settings: ExtractSettings, root: Path) -> list[EncodedPrompt]:
    """The prompts of the files that `source` names, relative to `root`, as the model's tokenizer reads them.

    Raises:
        InputError: A file is missing, empty or broken, or an id stands in both.
    """
    # files first: they are quick to check, a model is slow to load
    texts = [(read_prompts(root / source.prompts, source.prompt_field), False)]
    if source.held_out_prompts:
        texts.append((read_prompts(root / source.held_out_prompts, source.prompt_field), True))
        common = {prompt.id for prompt in texts[0][0]} & {prompt.id for prompt in texts[1][0]}
        if common:
            raise InputError(
                f"{source.held_out_prompts}: id {min(common)!r} also stands in {source.prompts}; make ids distinct"
            )
    tokenizer = load(model_of(source)).tokenizer
    return [
        prompt
        for part, held_out in texts
        for prompt in encode(part, tokenizer, held_out=held_out, chat_template=settings.chat_template)
    ]


def model_of(source: TransformersSource) -> ModelSource:
    """What the parameters of a source say about the model."""
    return ModelSource(source.model, source.revision, source.trust_remote_code, source.device_map, source.dtype)
