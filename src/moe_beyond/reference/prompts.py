"""Prompts for the reference model: windows of documents that it was not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.traces.capture_prompts import EncodedPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from moe_beyond.reference.corpus import Document


def windows(
    documents: list[Document],
    tokenizer: PreTrainedTokenizerFast,
    *,
    count: int,
    min_tokens: int,
    max_tokens: int,
    domain: str,
    held_out: bool,
    seed: int,
) -> list[EncodedPrompt]:
    """Cut documents into windows of random length, side by side, and choose `count` of them.

    Raises:
        InputError: The documents are too short for so many windows.
    """
    rng = np.random.default_rng(seed)
    texts = tokenizer([document.text for document in documents], add_special_tokens=False)["input_ids"]
    cut = []
    for document, ids in zip(documents, texts, strict=True):
        start = 0
        while (length := int(rng.integers(min_tokens, max_tokens + 1))) <= len(ids) - start:
            name = f"{document.name}#{start}"
            cut.append(EncodedPrompt(name, domain, held_out, tuple(ids[start : start + length])))
            start += length
    if len(cut) < count:
        raise InputError(
            f"extract: {domain} has text for {len(cut)} prompts of {min_tokens} to {max_tokens} tokens, {count} are "
            f"wanted; lower extract.{domain}_prompts or raise reference.held_out_share"
        )
    return [cut[index] for index in sorted(rng.choice(len(cut), count, replace=False).tolist())]
