"""What each part of the predictor is worth: fits it with one thing changed at a time, and writes docs/ablation.md.

    python benchmarks/ablation.py [--splits build/deepseek/data/splits] [--esft ../shared/traces/esft.tar.xz]
        [--prompts 300] [--epochs 4] [--only NAME ...]

Each fit learns from the same prompts of the training split and is scored on the whole validation split; no test split
is read. What is measured already, in docs/ablation.csv, is not measured again, so that an interrupted run goes on;
remove a line, or the file, to repeat it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl

from moe_beyond.data.features import Features, token_features
from moe_beyond.data.tokens import TokenEncoder
from moe_beyond.files import replacing
from moe_beyond.formats import importers
from moe_beyond.traces import store
from moe_beyond.traces.schema import TokenTexts, Trace, concatenate
from moe_beyond.training.fit import fit
from moe_beyond.training.settings import TrainSettings
from moe_beyond.training.size import Size

_ROOT = Path(__file__).parents[1]
_CSV, _TABLE = _ROOT / "docs" / "ablation.csv", _ROOT / "docs" / "ablation.md"
_REFERENCE = "reference"
_SIZE = Size(width=384, depth=1, heads=8)
_SETTINGS = TrainSettings(
    precision="bf16-mixed", letter_buckets=8192, horizon=2, reach=10, layer_width=192, layer_hidden=384, patience=100
)
_SCORES = ("recall_at_k", "ahead_1", "ahead_2")

Blank = Callable[[Features, int], Features]


@dataclass(frozen=True)
class Variant:
    """The reference with one thing changed.

    Attributes:
        name: In the table.
        settings: Parameters of `train`.
        size: Width, depth or heads.
        blank: Takes something away from the inputs, given the number of experts.
        by_id: Each layer's experts in the order of their ids instead of the router's.
        esft: ESFT's sequences in training beside the prompts: routing of the same architecture, no token strings.
        seed: Of the fit.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    size: dict[str, int] = field(default_factory=dict)
    blank: Blank | None = None
    by_id: bool = False
    esft: bool = False
    seed: int = 7


def _without_strings(features: Features, num_experts: int) -> Features:
    return replace(features, tokens_T=np.zeros_like(features.tokens_T))


def _without_letters(features: Features, num_experts: int) -> Features:
    return replace(features, letters_TG=np.zeros_like(features.letters_TG))


def _without_previous(features: Features, num_experts: int) -> Features:
    return _blank_half(features, num_experts, 0)


def _without_repeated(features: Features, num_experts: int) -> Features:
    return _blank_half(features, num_experts, 1)


def _blank_half(features: Features, num_experts: int, half: int) -> Features:
    halves = np.split(features.previous_TLM, 2, axis=2)
    halves[half] = np.full_like(halves[half], num_experts)
    return replace(features, previous_TLM=np.concatenate(halves, axis=2))


VARIANTS = (
    Variant(_REFERENCE),
    Variant("reference, another seed", seed=8),
    Variant("reference, a third seed", seed=9),
    Variant("loss: softmax", {"loss": "softmax"}),
    Variant("loss: ranking", {"loss": "ranking"}),
    Variant("input: no strings of their own, letters alone", blank=_without_strings),
    Variant("input: no letters", blank=_without_letters),
    Variant("input: no routing of the token before", blank=_without_previous),
    Variant("input: no routing of the string's last time", blank=_without_repeated),
    Variant("input: a layer's experts by id, not in the router's order", by_id=True),
    Variant("data: ESFT's sequences too, routing without strings", esft=True),
    # about as many steps as the reference: tells the data from the number of steps
    Variant("data: ESFT's sequences too, half the epochs", {"epochs": 2}, esft=True),
    Variant("layer step: reach 2", {"reach": 2}),
    Variant("layer step: reach 25, every later layer", {"reach": 25}),
    Variant("layer step: width 64", {"layer_width": 64, "layer_hidden": 128}),
    Variant("layer step: width 384", {"layer_width": 384, "layer_hidden": 768}),
    Variant("layer step: width 448, hidden 224", {"layer_width": 448, "layer_hidden": 224}),
    Variant("layer step: half the weight in the loss", {"layer_loss_weight": 0.5}),
    Variant("layer step: twice the weight in the loss", {"layer_loss_weight": 2.0}),
    Variant("token step: width 192", size={"width": 192}),
    Variant("token step: width 768", size={"width": 768}),
    Variant("token step: depth 2", size={"depth": 2}),
    Variant("token step: embeddings of 48", {"embedding_width": 48}),
    Variant("token step: embeddings of 384", {"embedding_width": 384}),
    Variant("token step: 2,048 letter buckets", {"letter_buckets": 2048}),
    Variant("token step: window 16", {"window": 16}),
    Variant("regularisation: no dropout", {"dropout": 0.0}),
    Variant("regularisation: dropout 0.3", {"dropout": 0.3}),
    Variant("regularisation: no token hidden", {"token_dropout": 0.0}),
    Variant("regularisation: no history hidden", {"history_dropout": 0.0}),
    Variant("regularisation: weight decay 0.3", {"weight_decay": 0.3}),
    # as many tokens a step as with a window of 16: tells the window from the number of steps
    Variant("optimiser: batches of 4 windows", {"batch_size": 4}),
    Variant("optimiser: learning rate 0.0015", {"learning_rate": 0.0015}),
    Variant("optimiser: learning rate 0.006", {"learning_rate": 0.006}),
    Variant("arithmetic: 32 bits", {"precision": "32-true"}),
)


def main() -> None:
    """Fit what is not in the CSV yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=Path, default=_ROOT / "build/deepseek/data/splits")
    parser.add_argument("--esft", type=Path, default=_ROOT / "../shared/traces/esft.tar.xz")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--only", nargs="*", help="names of variants")
    options = parser.parse_args()
    train, validation = (store.open_working(options.splits / name) for name in ("train", "validation"))
    chosen = np.sort(np.random.default_rng(0).permutation(train.num_prompts)[: options.prompts])
    train = train.select(chosen)
    rows = pl.read_csv(_CSV).to_dicts() if _CSV.exists() else []
    for variant in VARIANTS:
        wanted = not options.only or variant.name in options.only
        if wanted and variant.name not in {row["variant"] for row in rows}:
            learned = concatenate([train, _without_texts(options.esft)]) if variant.esft else train
            rows.append(measure(variant, learned, validation, options.epochs))
            with replacing(_CSV) as temporary:
                pl.DataFrame(rows).write_csv(temporary)
            print(rows[-1], flush=True)
    with replacing(_TABLE) as temporary:
        temporary.write_text(markdown(rows), encoding="utf-8")


def measure(variant: Variant, train: Trace, validation: Trace, epochs: int) -> dict[str, Any]:
    """Fit a variant: a row of the table."""
    if variant.by_id:
        train, validation = (_by_id(trace) for trace in (train, validation))
    settings = _SETTINGS.model_copy(update={"epochs": epochs, **variant.settings})
    start = time.perf_counter()
    with _blanked(variant.blank), tempfile.TemporaryDirectory() as scratch:
        size = replace(_SIZE, **variant.size)
        result = fit(
            train, validation, size, settings, epochs=settings.epochs, seed=variant.seed, scratch=Path(scratch)
        )
    best = result.metrics()
    return {
        "variant": variant.name,
        "recall_at_k": best["validation_recall_at_k"],
        "ahead_1": best["validation_recall_at_k_ahead_1"],
        "ahead_2": best["validation_recall_at_k_ahead_2"],
        "parameters": best["parameters"] + best["layer_step_parameters"],
        "train_prompts": train.num_prompts,
        "train_tokens": train.num_tokens,
        "epochs": settings.epochs,
        "minutes": (time.perf_counter() - start) / 60,
    }


def _without_texts(archive: Path) -> Trace:
    """ESFT's sequences; their experts are listed as in the prompts' traces, the one of least weight last."""
    trace = importers.read("esft", archive)
    return replace(trace, token_texts=TokenTexts(np.zeros(trace.num_tokens, np.int32), ("",)))


def _by_id(trace: Trace) -> Trace:
    experts_TLK = trace.experts_TLK.copy()
    experts_TLK.sort(axis=2)
    return replace(trace, experts_TLK=experts_TLK, weights_TLK=None)


def _blanked(blank: Blank | None) -> Any:
    """While this is open, a fit sees features with something taken away."""
    if blank is None:
        return nullcontext()

    def see_less(trace: Trace, encoder: TokenEncoder) -> Features:
        return blank(token_features(trace, encoder), trace.metadata.num_experts)

    return patch("moe_beyond.training.datamodule.token_features", see_less)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The page: differences to the reference in points, beside the spread of the reference's own seeds."""
    reference = next(row for row in rows if row["variant"] == _REFERENCE)
    seeds = [row for row in rows if row["variant"].startswith(_REFERENCE)]
    spread = {score: 100 * (max(r[score] for r in seeds) - min(r[score] for r in seeds)) for score in _SCORES}
    lines = [
        "# What each part of the predictor is worth",
        "",
        "Written by `python benchmarks/ablation.py`, which changes one thing at a time; figures are in `ablation.csv`.",
        f"Each fit saw {reference['train_prompts']} training prompts ({reference['train_tokens']:,} tokens) for "
        f"{reference['epochs']} epochs: less than a full fit, so that all can be compared. Scores are recall@k in "
        "percent on the whole",
        "validation split of the published traces of DeepSeek-V2-Lite (prompts of Puffin); no test split was read.",
        "`token` is ahead of the token, `+1` and `+2` are one and two layers ahead. Under `difference` stand points "
        "against",
        f"the reference; its {len(seeds)} seeds differ among themselves by up to "
        f"{spread['recall_at_k']:.2f}, {spread['ahead_1']:.2f} and {spread['ahead_2']:.2f}: smaller differences say "
        "nothing.",
        "",
        "| changed | token | +1 | +2 | difference: token | +1 | +2 | parameters (M) |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        percent = " | ".join(f"{100 * row[score]:.1f}" for score in _SCORES)
        change = " | ".join(f"{100 * (row[score] - reference[score]):+.2f}" for score in _SCORES)
        lines.append(f"| {row['variant']} | {percent} | {change} | {row['parameters'] / 1e6:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
