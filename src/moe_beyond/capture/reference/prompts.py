"""Prompts for the reference model: windows of documents that it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_beyond.capture.models import ModelSource, load
from moe_beyond.capture.prompts import EncodedPrompt
from moe_beyond.capture.reference.recipe import CODE, ENGLISH, read_held_out
from moe_beyond.capture.shards import CaptureJob
from moe_beyond.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from moe_beyond.capture.reference.corpus import Document
    from moe_beyond.capture.settings import ExtractSettings


def reference_job(folder: Path, settings: ExtractSettings, seed: int) -> CaptureJob:
    """How to trace the reference model in `folder`."""
    return CaptureJob(
        model=ModelSource(str(folder)),
        model_id="moe-beyond/reference",
        source="live capture over English and code of Python's standard library",
        licence="PSF-2.0",
        # the predictor of the default pipeline learns from them
        settings=settings.model_copy(update={"hidden_states": settings.hidden_states or "all"}),
        seed=seed,
        threads=1,
    )


def reference_prompts(folder: Path, settings: ExtractSettings, seed: int) -> list[EncodedPrompt]:
    """Windows of held-out English, and of code as a domain that is kept for testing.

    Raises:
        InputError: The folder holds no reference model, or the held-out text is too short.
    """
    tokenizer = load(ModelSource(str(folder))).tokenizer
    lengths = (settings.min_prompt_tokens, settings.max_prompt_tokens)
    parts = [(ENGLISH, settings.english_prompts, False), (CODE, settings.code_prompts, True)]
    return [
        prompt
        for domain, count, held_out in parts
        for prompt in windows(
            read_held_out(folder, domain), tokenizer, lengths, count=count, domain=domain, held_out=held_out, seed=seed
        )
    ]


def windows(
    documents: list[Document],
    tokenizer: PreTrainedTokenizerBase,
    lengths: tuple[int, int],
    *,
    count: int,
    domain: str,
    held_out: bool,
    seed: int,
) -> list[EncodedPrompt]:
    """Cut documents into windows of random length between two limits, side by side, and choose `count` of them.

    Raises:
        InputError: The documents are too short for so many windows.
    """
    rng, (shortest, longest) = np.random.default_rng(seed), lengths
    texts = tokenizer([document.text for document in documents], add_special_tokens=False)["input_ids"]
    cut = []
    for document, ids in zip(documents, texts, strict=True):
        start = 0
        while (length := int(rng.integers(shortest, longest + 1))) <= len(ids) - start:
            name = f"{document.name}#{start}"
            cut.append(EncodedPrompt(name, domain, held_out, tuple(ids[start : start + length])))
            start += length
    if len(cut) < count:
        raise InputError(
            f"extract: {domain} has text for {len(cut)} prompts of {shortest} to {longest} tokens, {count} are "
            f"needed; lower extract.{domain}_prompts or raise reference.held_out_share"
        )
    return [cut[index] for index in sorted(rng.choice(len(cut), count, replace=False).tolist())]
