"""Hit rates and cards of models whose routing was recorded, and the band in which those of another model may lie.

The package's own come from published traces and the reference model (`python -m benchmarks.golden
--publish-known-models`); datasets of `export hub` hold the same two tables, so that anybody can add to them.

Sizes of caches are compared by position: -1 an empty one, 0 one token's cycle, 1 the whole model. Below its cycle an
LRU hits next to nothing, and the cycle is another share of each model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.exceptions import PolarsError

from moe_beyond.assess.assessment import Assessment, cards_table
from moe_beyond.errors import InputError, reason_of

F64 = npt.NDArray[np.float64]
CURVES, CARD = "hit_curves", "card"
COLUMNS: dict[str, Any] = {
    "model": pl.String,
    "prompts": pl.Int64,
    "tokens": pl.Int64,
    "num_layers": pl.Int64,
    "num_experts": pl.Int64,
    "top_k": pl.Int64,
    "policy": pl.String,
    "capacity_fraction": pl.Float64,
    "hit_rate": pl.Float64,
}
"""Of the table of curves: a row a model, a policy and a size of the cache, as a share of the model's experts."""
SHOWN_SHARES = (0.05, 0.1, 0.2, 0.5)
_GRID = np.linspace(0, 1, 101)[1:-1]
_TIE = 1e-9


@dataclass(frozen=True)
class KnownCurve:
    """LRU's hit rates of one model, every token replayed as a decoded one in a cache that starts empty.

    Attributes:
        model: Its name.
        num_layers: With experts.
        num_experts: In each.
        top_k: Of a token.
        tokens: That were recorded.
        shares_C: Shares of the experts that the cache holds, rising.
        hit_rates_C: At each.
    """

    model: str
    num_layers: int
    num_experts: int
    top_k: int
    tokens: int
    shares_C: F64
    hit_rates_C: F64

    @property
    def shape(self) -> tuple[int, int, int]:
        """Variants of one model share it: to hold out one of them is to hold out all."""
        return self.num_layers, self.num_experts, self.top_k

    def at(self, positions: F64) -> F64:
        """Hit rates at these positions."""
        cycle = self.top_k / self.num_experts
        shares = np.where(positions < 0, (positions + 1) * cycle, cycle + positions * (1 - cycle))
        # the other layers of a token use that much between two uses of a layer: nothing hits up to there
        none = cycle * (self.num_layers - 1) / self.num_layers
        above = self.shares_C > none
        rates: F64 = np.interp(shares, [0.0, none, *self.shares_C[above]], [0.0, 0.0, *self.hit_rates_C[above]])
        return rates


def position_of(share: float, top_k: int, num_experts: int) -> float:
    """The position of a cache that holds this share of the experts."""
    cycle = top_k / num_experts
    return share / cycle - 1 if share < cycle else (share - cycle) / max(1 - cycle, 1e-9)


def band(curves: Sequence[KnownCurve], position: float) -> tuple[float, float]:
    """The least and the largest hit rate of the known models at a position."""
    rates = [float(curve.at(np.array([position]))[0]) for curve in curves]
    return min(rates), max(rates)


def outside_by_model(curves: Sequence[KnownCurve]) -> dict[str, F64]:
    """How far outside the band of the others each model's hit rates lie, at positions from 0 to 1; 0 inside.

    Each model is left out in turn, with all of its shape.

    Raises:
        InputError: There are no two shapes.
    """
    if len({curve.shape for curve in curves}) < 2:
        raise InputError("curves of a single model give no band; add those of another, such as --beside known")
    outside = {}
    for curve in curves:
        others = [other.at(_GRID) for other in curves if other.shape != curve.shape]
        rates = curve.at(_GRID)
        beyond = np.maximum(np.min(others, axis=0) - rates, rates - np.max(others, axis=0))
        outside[curve.model] = np.where(beyond > _TIE, beyond, 0.0)
    return outside


def held_out(curves: Sequence[KnownCurve]) -> tuple[float, float]:
    """How well the band of other models holds a model: at which share of positions, and the farthest outside.

    Raises:
        InputError: As `outside_by_model`.
    """
    outside = np.concatenate(list(outside_by_model(curves).values()))
    return float(np.mean(outside == 0)), float(np.max(outside))


def hub_tables(assessment: Assessment, name: str | None = None) -> dict[str, pl.DataFrame]:
    """A model's curves, in the columns of `COLUMNS`, and its card as one row of `cards_table`.

    Args:
        assessment: Of its trace.
        name: To call it by; None: its own.
    """
    card = assessment.card | ({} if name is None else {"model_id": name})
    shape = {name: card[name] for name in ("prompts", "tokens", "num_layers", "num_experts", "top_k")}
    curves = assessment.tables["hit_curves"].with_columns(
        pl.lit(card["model_id"]).alias("model"), *(pl.lit(value).alias(name) for name, value in shape.items())
    )
    return {CURVES: curves.select(pl.col(name).cast(kind) for name, kind in COLUMNS.items()), CARD: cards_table([card])}


def known_tables(source: Path | None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tables of curves and cards: the package's own, or those of a dataset folder that `export hub` wrote.

    Raises:
        InputError: There are none, or they are damaged or lack a column.
    """
    if source is None:
        own = [
            pl.read_csv((files("moe_beyond.assess") / f"{name}s.csv").read_bytes()) for name in ("hit_curve", "card")
        ]
        return own[0].select(pl.col(name).cast(kind) for name, kind in COLUMNS.items()), own[1]
    tables = []
    for name in (CURVES, CARD):
        paths = sorted((source / name).glob("*.parquet"))
        if not paths:
            raise InputError(f"{source}: no {name}/*.parquet; give a folder that `moe-beyond export hub` wrote")
        try:
            tables.append(pl.concat([pl.read_parquet(path, glob=False) for path in paths], how="diagonal_relaxed"))
        except (PolarsError, OSError) as error:
            raise InputError(f"{source / name}: not readable as one table ({reason_of(error)})") from error
    missing = [name for name in COLUMNS if name not in tables[0].columns]
    missing += [name for name in ("model", "verdict") if name not in tables[1].columns]
    if missing:
        raise InputError(f"{source}: lacks the column {missing[0]!r}; write it with `moe-beyond export hub`")
    try:
        curves = tables[0].select(pl.col(name).cast(kind) for name, kind in COLUMNS.items())
    except PolarsError as error:
        raise InputError(f"{source / CURVES}: {reason_of(error)}; write it with `moe-beyond export hub`") from error
    wrong = curves.filter(
        ~(
            pl.col("hit_rate").is_between(0, 1)
            & pl.col("capacity_fraction").is_between(0, 1)
            & (pl.col("top_k") >= 1)
            & (pl.col("num_layers") >= 1)
            & (pl.col("tokens") >= 0)
            & pl.col("model").is_not_null()
            & (pl.col("num_experts") > pl.col("top_k"))
        ).fill_null(False)
    )
    if wrong.height:
        raise InputError(f"{source / CURVES}: {wrong.row(0)!r:.200}: expected shares from 0 to 1 of a top-k below E")
    return curves, tables[1].with_columns(pl.col("model", "verdict").cast(pl.String, strict=False))


def known_curves(tables: Sequence[pl.DataFrame]) -> list[KnownCurve]:
    """LRU's curves of every model in these tables; of a model that stands in several, the first."""
    curves: dict[str, KnownCurve] = {}
    for table in tables:
        for key, rows in table.filter(policy="lru").group_by("model", maintain_order=True):
            first, rising = rows.row(0, named=True), rows.sort("capacity_fraction")
            shape = {name: first[name] for name in ("num_layers", "num_experts", "top_k", "tokens")}
            shares, rates = rising["capacity_fraction"].to_numpy(), rising["hit_rate"].to_numpy()
            curves.setdefault(str(key[0]), KnownCurve(str(key[0]), **shape, shares_C=shares, hit_rates_C=rates))
    return list(curves.values())


def beside_table(curves: Sequence[KnownCurve], cards: Sequence[pl.DataFrame]) -> list[dict[str, Any]]:
    """A row a model that has a curve: verdict, shape, and LRU's hit rates at shares of its experts."""
    verdicts = {row["model"]: row["verdict"] for table in reversed(cards) for row in table.iter_rows(named=True)}
    rows = []
    for curve in curves:
        places = [position_of(share, curve.top_k, curve.num_experts) for share in SHOWN_SHARES]
        rates = curve.at(np.array(places)).tolist()
        rows.append(
            {
                "model": curve.model,
                "verdict": verdicts.get(curve.model),
                **{name: getattr(curve, name) for name in ("num_layers", "num_experts", "top_k", "tokens")},
                **{f"lru_hit_rate_at_{share:.0%}": rate for share, rate in zip(SHOWN_SHARES, rates, strict=True)},
            }
        )
    return rows
