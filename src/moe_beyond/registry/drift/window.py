"""The window of a predictor: which experts its training data used, and how well it did; kept in its bundle.

Shape suffixes: P prompts, L MoE layers, E experts in a layer.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.documents import load_csv, load_json, read_plain
from moe_beyond.errors import DAMAGE_ERRORS, InputError, reason_of
from moe_beyond.files import replacing, write_json
from moe_beyond.traces.schema import Trace, expert_counts_LE

_COLUMNS = ("layer", "expert", "count")
_MOST_COUNTS = 2**53
COUNTS_FILE, MEASURES_FILE = "window.npz", "window.json"
_MOST_PROMPTS = 2000
"""Prompts whose counts are kept apart; of more, every n-th: chance needs no more, and the file stays small."""


@dataclass(frozen=True)
class Measures:
    """What a replay measured.

    Attributes:
        source: What predicted: the predictor, or counts where there is none.
        recall_at_k: Share of true experts among the k that were predicted.
        hit_rate: Of the cache that the gate replays.
        regret: Share of the loads, prefetches included, that Belady's foresight would have saved.
        capacity_experts: Slots of that cache.
    """

    source: str
    recall_at_k: float
    hit_rate: float
    regret: float
    capacity_experts: int


@dataclass(frozen=True)
class Window:
    """Usage of experts in some traces.

    Attributes:
        model_id: The traced model.
        layer_numbers: Its MoE layers.
        counts_LE: How often each expert was used, int64.
        prompt_counts_PLE: The same by prompt, for some or all prompts; None where only totals are known.
    """

    model_id: str
    layer_numbers: tuple[int, ...]
    counts_LE: npt.NDArray[np.int64]
    prompt_counts_PLE: npt.NDArray[np.int64] | None

    @classmethod
    def of(cls, trace: Trace) -> Window:
        """Count a trace."""
        meta = trace.metadata
        chosen = range(0, trace.num_prompts, -(-trace.num_prompts // _MOST_PROMPTS))
        bounds = trace.prompt_offsets
        counts = [expert_counts_LE(trace.experts_TLK[bounds[p] : bounds[p + 1]], meta.num_experts) for p in chosen]
        whole_LE = expert_counts_LE(trace.experts_TLK, meta.num_experts)
        return cls(meta.model_id, meta.layer_numbers, whole_LE, np.stack(counts).astype(np.int64))

    def require_same_shape(self, other: Window, what: str) -> None:
        """Refuse to compare other layers or experts.

        Raises:
            InputError: The shapes differ.
        """
        mine, theirs = self.counts_LE.shape, other.counts_LE.shape
        if mine != theirs or self.layer_numbers != other.layer_numbers:
            raise InputError(
                f"{what}: {theirs[0]} layers of {theirs[1]} experts ({other.model_id}), the traces have {mine[0]} of "
                f"{mine[1]} ({self.model_id}); compare traces of one model"
            )


def write_window(folder: Path, window: Window, measures: Measures) -> None:
    """Write both files of a window into a folder."""
    with replacing(folder / COUNTS_FILE) as temporary, temporary.open("wb") as file:
        kept = window.counts_LE[None] if window.prompt_counts_PLE is None else window.prompt_counts_PLE
        np.savez_compressed(file, counts=window.counts_LE, prompts=kept.astype(np.uint32))
    shape = {"model_id": window.model_id, "layer_numbers": window.layer_numbers}
    write_json(folder / MEASURES_FILE, {**shape, "measures": asdict(measures)})


def read_window(folder: Path) -> tuple[Window, Measures]:
    """Read what `write_window` wrote.

    Raises:
        InputError: A file is missing or damaged, or counts nothing.
    """
    for name in (COUNTS_FILE, MEASURES_FILE):
        if not (folder / name).exists():
            raise InputError(f"{folder / name}: no such file; give a bundle that the publish stage registered")
    try:
        described = load_json(read_plain(folder / MEASURES_FILE).decode(), str(folder / MEASURES_FILE))
        with np.load(io.BytesIO(read_plain(folder / COUNTS_FILE))) as arrays:
            counts_LE, prompts_PLE = arrays["counts"].astype(np.int64), arrays["prompts"].astype(np.int64)
        window = Window(described["model_id"], tuple(described["layer_numbers"]), counts_LE, prompts_PLE)
        measures = Measures(**described["measures"])
        fits = counts_LE.shape == prompts_PLE.shape[1:] and len(counts_LE) == len(window.layer_numbers)
    except InputError:
        raise
    except DAMAGE_ERRORS as error:
        raise InputError(f"{folder}: a damaged window ({reason_of(error)}); publish the predictor again") from error
    if not fits or counts_LE.min(initial=0) < 0 or not counts_LE.any():
        raise InputError(f"{folder}: a window that counts nothing, or not its layers; publish the predictor again")
    return window, measures


def read_counts(path: Path) -> Window:
    """Read a CSV of columns layer, expert, count: what a server can keep without keeping traces.

    Raises:
        InputError: Not such a CSV, a negative count, a pair that is there twice, or one that is missing.
    """
    table = load_csv(path, comment=None, infer_schema_length=None)
    if not table.height:
        raise InputError(f"{path}: expected counts of at least 0 in every row, found none")
    if set(table.columns) != set(_COLUMNS) or not all(table[name].dtype == pl.Int64 for name in _COLUMNS):
        raise InputError(f"{path}: not a CSV of columns layer,expert,count with whole numbers in every row")
    if table.null_count().sum_horizontal()[0] or table.select(pl.min_horizontal(_COLUMNS).min()).item() < 0:
        raise InputError(f"{path}: expected layers, experts and counts of at least 0 in every row")
    if not 0 < table["count"].cast(pl.Float64).sum() <= _MOST_COUNTS:
        raise InputError(f"{path}: counts that are all 0, or more than {_MOST_COUNTS}; nothing was counted")
    layers, experts = table["layer"].unique().sort().to_list(), int(table["expert"].max()) + 1  # type: ignore[arg-type]
    if table.height != len(layers) * experts or table.select("layer", "expert").is_duplicated().any():
        raise InputError(
            f"{path}: {table.height} rows for {len(layers)} layers of {experts} experts; expected one row a layer and "
            "expert, those with count 0 too"
        )
    counts_LE = table.sort("layer", "expert")["count"].to_numpy().reshape(len(layers), experts)
    return Window(str(path), tuple(layers), counts_LE, None)
