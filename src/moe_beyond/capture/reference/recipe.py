"""Makes the reference model from nothing: corpus, tokenizer, training, evaluation, a folder that transformers loads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moe_beyond.capture.reference import corpus, model, training
from moe_beyond.capture.reference.corpus import Document
from moe_beyond.capture.reference.evaluation import expert_load, load_summary
from moe_beyond.files import fingerprint, replacing, scratch_folder
from moe_beyond.threads import keep_freed_memory, torch_threads

if TYPE_CHECKING:
    from transformers import DeepseekV2ForCausalLM, PreTrainedTokenizerFast

    from moe_beyond.capture.reference.settings import ReferenceSettings
    from moe_beyond.capture.reference.training import History

HELD_OUT_FILE = "held_out.jsonl"
"""Beside the model: the documents it was not trained on, `domain`, `name` and `text` a line."""
ENGLISH, CODE = "english", "code"
_CODE_CHARACTERS = 600_000


@dataclass(frozen=True)
class Corpus:
    """Documents by use."""

    train: list[Document]
    held_out: list[Document]
    code: list[Document]


def collect(settings: ReferenceSettings) -> Corpus:
    """Split the English of this Python and take some of its code, which is never trained on."""
    english = corpus.english()
    held_out = [document for document in english if corpus.is_held_out(document, settings.held_out_share)]
    kept_out = {document.name for document in held_out}
    train = [document for document in english if document.name not in kept_out]
    return Corpus(train, held_out, corpus.code(_CODE_CHARACTERS))


@torch_threads(1)
def make(settings: ReferenceSettings, seed: int, root: Path, output: Path) -> tuple[dict[str, Any], History]:
    """Train the reference model and write it, its tokenizer and the held-out documents to `output`.

    Computes with one thread: with two, the same seed would not give the same model twice.

    Args:
        settings: Shape and budget.
        seed: Of weights and batches.
        root: The project's root; an interrupted training goes on from its `.scratch`.
        output: Replaced as a whole.

    Returns:
        Metrics (nested numbers) and the history of losses.
    """
    keep_freed_memory()
    documents = collect(settings)
    digest = corpus.sha256(documents.train + documents.held_out + documents.code)
    tokenizer = model.train_tokenizer(documents.train, settings.vocabulary_size)
    train_N, held_out_N = (training.encode(part, tokenizer) for part in (documents.train, documents.held_out))
    network = model.build(settings, tokenizer, seed)
    initial = training.validate(network, held_out_N, settings)
    key = fingerprint(settings.model_dump(), digest, seed, torch.__version__)
    with scratch_folder(root, "reference", key) as unfinished:
        history = training.fit(network, train_N, held_out_N, settings, seed=seed, scratch=unfinished)
        metrics = {
            "validation_cross_entropy": history.validation_loss[-1],
            "initial_cross_entropy": initial,
            "unigram_cross_entropy": unigram_cross_entropy(train_N, held_out_N, len(tokenizer)),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "trained_tokens": training.num_steps(settings) * settings.batch_sequences * settings.sequence_tokens,
            "documents": {name: len(part) for name, part in vars(documents).items()},
            "corpus_tokens": {"train": len(train_N), "held_out": len(held_out_N)},
            "load": load_summary(
                expert_load(network, training.validation_batches(held_out_N, settings)), settings.dense_layers
            ),
        }
        _save(network, tokenizer, documents, _card(metrics, digest, seed), output)
    return metrics, history


def read_held_out(folder: Path, domain: str) -> list[Document]:
    """The held-out documents of a domain, as `make` wrote them."""
    lines = (folder / HELD_OUT_FILE).read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    return [Document(row["name"], row["text"]) for row in rows if row["domain"] == domain]


def unigram_cross_entropy(train_N: training.Tokens, held_out_N: training.Tokens, vocabulary_size: int) -> float:
    """Nats a held-out token of the model that knows token frequencies alone (add-one smoothing)."""
    counts = np.bincount(train_N, minlength=vocabulary_size) + 1.0
    return float(-np.log(counts / counts.sum())[held_out_N].mean())


def _save(
    network: DeepseekV2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    documents: Corpus,
    card: str,
    output: Path,
) -> None:
    with replacing(output) as temporary:
        network.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        with (temporary / HELD_OUT_FILE).open("w", encoding="utf-8") as file:
            for domain, part in ((ENGLISH, documents.held_out), (CODE, documents.code)):
                for document in part:
                    file.write(json.dumps({"domain": domain, "name": document.name, "text": document.text}) + "\n")


def _card(metrics: dict[str, Any], digest: str, seed: int) -> str:
    return f"""# Reference Mixture-of-Experts

A DeepSeek-V2-shaped model of {metrics["parameters"]:,} parameters, trained for {metrics["trained_tokens"]:,} tokens on
the English that ships with Python. It stands in for a real model so that the pipeline needs no download; it does not
represent one: its routing is mostly lexical.

- validation cross-entropy {metrics["validation_cross_entropy"]:.2f} nats a token (token frequencies alone:
  {metrics["unigram_cross_entropy"]:.2f}, untrained: {metrics["initial_cross_entropy"]:.2f})
- corpus sha256 `{digest}`, seed {seed}, torch {torch.__version__}
- the text is Python's, under the PSF licence version 2
"""
