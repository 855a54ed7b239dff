"""What each part of the layer step with hidden states is worth: fits it with one thing changed at a time.

    python -m benchmarks.ablation_hidden [--splits data/splits] [--prompts 300] [--epochs 6]

After `make repro`; writes docs/ablation_hidden.md. As in `benchmarks/ablation.py`, fits learn from the same prompts of
the training split and are scored on the whole validation split, no test split is read, and what stands in
docs/ablation_hidden.csv is not measured again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from moe_beyond.files import replacing
from moe_beyond.traces import store
from moe_beyond.traces.schema import Trace
from moe_beyond.training.fit import fit
from moe_beyond.training.settings import TrainSettings
from moe_beyond.training.size import Size

_ROOT = Path(__file__).parents[1]
_CSV, _TABLE = _ROOT / "docs" / "ablation_hidden.csv", _ROOT / "docs" / "ablation_hidden.md"
_REFERENCE = "reference"
_SIZE = Size(width=128, depth=2, heads=8)
_SCORES = ("token", "ahead_1", "ahead_2", "ahead_3", "ahead_4")


@dataclass(frozen=True)
class Variant:
    """The reference with one thing changed.

    Attributes:
        name: In the table.
        settings: Parameters of `train`.
        prompts: A multiple of the reference's training prompts, at as many steps.
        seed: Of the fit.
        routers: Whether the layer step runs the next routers early.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    prompts: float = 1.0
    seed: int = 7
    routers: bool = True


VARIANTS = (
    Variant(_REFERENCE),
    Variant("reference, another seed", seed=8),
    Variant("reference, a third seed", seed=9),
    Variant("no hidden states", {"hidden_states": False, "horizon": 4}),
    Variant("no routers run early", routers=False),
    Variant("rank 16", {"hidden_rank": 16}),
    Variant("rank 96, that of the hidden states", {"hidden_rank": 96}),
    Variant("8 units", {"hidden_units": 8}),
    Variant("256 units", {"hidden_units": 256}),
    Variant("horizon 2", {"hidden_horizon": 2}),
    Variant("half the prompts, as many steps", prompts=0.5),
    Variant("twice the prompts, as many steps", prompts=2.0),
)


def main() -> None:
    """Fit what is not in the CSV yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=Path, default=_ROOT / "data/splits")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    train, validation = (store.open_working(options.splits / name) for name in ("train", "validation"))
    order = np.random.default_rng(0).permutation(train.num_prompts)
    rows = pl.read_csv(_CSV).to_dicts() if _CSV.exists() else []
    for variant in VARIANTS:
        if variant.name not in {row["variant"] for row in rows}:
            chosen = np.sort(order[: round(variant.prompts * options.prompts)])
            epochs = max(1, round(options.epochs / variant.prompts))
            rows.append(measure(variant, train.select(chosen), validation, epochs))
            with replacing(_CSV) as temporary:
                pl.DataFrame(rows, infer_schema_length=None).write_csv(temporary)
            print(rows[-1], flush=True)
    with replacing(_TABLE) as temporary:
        temporary.write_text(markdown(rows), encoding="utf-8")


def measure(variant: Variant, train: Trace, validation: Trace, epochs: int) -> dict[str, Any]:
    """Fit a variant: a row of the table."""
    settings = TrainSettings(window=32, patience=100, **variant.settings)
    if train.hidden is not None and not variant.routers:
        train = replace(train, hidden=replace(train.hidden, routers=None))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        result = fit(train, validation, _SIZE, settings, epochs=epochs, seed=variant.seed, scratch=Path(scratch))
    best = result.metrics()
    way = "hidden" if settings.hidden_states else "ahead"
    ahead = {f"ahead_{h}": best.get(f"validation_recall_at_k_{way}_{h}") for h in range(1, 5)}
    return {
        "variant": variant.name,
        "token": best["validation_recall_at_k"],
        **ahead,
        "parameters": sum(value for name, value in best.items() if name.endswith("parameters")),
        "train_prompts": train.num_prompts,
        "train_tokens": train.num_tokens,
        "epochs": epochs,
        "minutes": (time.perf_counter() - start) / 60,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The page: recall, and differences to the reference in points beside the spread of the reference's own seeds."""
    reference = next(row for row in rows if row["variant"] == _REFERENCE)
    seeds = [row for row in rows if row["variant"].startswith(_REFERENCE)]
    spread = [100 * (max(r[score] for r in seeds) - min(r[score] for r in seeds)) for score in _SCORES]
    lines = [
        "# What hidden states are worth to the predictor",
        "",
        "Written by `python -m benchmarks.ablation_hidden`, which changes one thing at a time; figures are in",
        f"`ablation_hidden.csv`. Each fit saw {reference['train_prompts']} training prompts "
        f"({reference['train_tokens']:,} tokens) for {reference['epochs']} epochs: less",
        "than a full fit, so that all can be compared. Scores are recall@k in percent on the whole validation split of",
        "the reference model; no test split was read. `token` is ahead of the token, `+1` to `+4` are layers ahead,",
        "over all layers: where nothing is known yet, it is the token step's. Differences to the reference stand in",
        f"brackets, in points; its {len(seeds)} seeds differ among themselves by up to "
        f"{', '.join(f'{points:.2f}' for points in spread)}: smaller differences say nothing.",
        "",
        "| changed | token | +1 | +2 | +3 | +4 | parameters (M) |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [_cell(row[score], reference[score]) for score in _SCORES]
        lines.append(f"| {row['variant']} | {' | '.join(cells)} | {row['parameters'] / 1e6:.1f} |")
    return "\n".join(lines) + "\n"


def _cell(value: float | None, reference: float) -> str:
    return "" if value is None else f"{100 * value:.1f} ({100 * (value - reference):+.2f})"


if __name__ == "__main__":
    main()
