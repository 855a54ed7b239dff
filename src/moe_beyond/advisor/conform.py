"""Whether an engine hits what the same policy hits in a replay, and where they part.

Shape suffixes: N events, F phases (0 prefill, 1 decode), L MoE layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from moe_beyond.advisor.one_replay import Setup, parts_of
from moe_beyond.documents import load_csv
from moe_beyond.errors import InputError
from moe_beyond.simulator.engine.replay import sweep_prepared
from moe_beyond.simulator.jit import I64
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.traces.schema import Trace, TraceMetadata

KEYS = ("step", "phase", "layer")
_PHASES = ("prefill", "decode")
_LISTED = 10
_MOST = 10**12
"""Hits of one row: sums of them stay whole numbers of 64 bits."""


def read_rows(path: Path, meta: TraceMetadata) -> pl.DataFrame:
    """An engine's hits: a CSV of `hits` by some of `step`, `phase` and `layer`.

    Columns: `hits`, or `misses` and `accesses`; `step` counts the passes of the whole trace from 0, a batched prefill
    as one; `phase` is prefill or decode; `layer` is the model's own number.

    Raises:
        InputError: Not a CSV, no key or no hits, something other than whole numbers from 0 to 10^12, more misses than
            accesses, a phase or a layer that is none of the model's, or two rows of one key.
    """
    table = load_csv(path)
    keys = [key for key in KEYS if key in table.columns]
    if not keys or not ("hits" in table.columns or {"misses", "accesses"} <= set(table.columns)):
        raise InputError(f"{path}: expected hits (or misses and accesses) by {', '.join(KEYS)} or some of these")
    counted = ["hits"] if "hits" in table.columns else ["accesses", "misses"]
    for column in {*keys, *counted} - {"phase"}:
        values = table[column]
        whole = values.dtype.is_integer() and not values.null_count()
        if not whole or (values < 0).any() or (values > _MOST).any():
            raise InputError(f"{path}: column {column!r}: expected whole numbers from 0 to {_MOST} in every row")
    if "misses" in counted and (table["misses"] > table["accesses"]).any():
        raise InputError(f"{path}: column 'misses': more of them than accesses in a row")
    for column, allowed in (("phase", _PHASES), ("layer", meta.layer_numbers)):
        wrong = [] if column not in keys else table.filter(~pl.col(column).is_in(allowed))[column].to_list()
        if wrong:
            known = ", ".join(map(str, allowed))
            raise InputError(f"{path}: column {column!r}: {wrong[0]!r} is none of {known}")
    if table.select(keys).is_duplicated().any():
        raise InputError(f"{path}: two rows of one {', '.join(keys)}; add up what belongs together")
    hits = pl.col("hits") if "hits" in counted else pl.col("accesses") - pl.col("misses")
    return table.select(*keys, hits.cast(pl.Int64).alias("hits"))


def conform(trace: Trace, setup: Setup, training: Trace | None, engine: int | pl.DataFrame) -> dict[str, Any]:
    """Replay a trace and compare.

    Args:
        trace: What the engine ran.
        setup: Policy and cache of the engine.
        training: Prompts that the policy is fitted to; None: it must not need any.
        engine: Its hits, of all or as `read_rows` reads them.

    Returns:
        For JSON: whether all is `equal`; the hits of both by phase; where they part by phase and layer, and the
        first rows that do; and under `would_be_equal` the options with which they would not.

    Raises:
        InputError: As `one_replay.replay_one`; or a policy that changes what is computed.
    """
    events, ours = _hits(trace, setup, training)
    difference = _difference(ours, engine)
    variants = {words: _hits(trace, other, training)[1] for words, other in _variants(setup)} if difference else {}
    by_phase = ours.group_by("phase").agg(pl.col("accesses", "hits").sum())
    counts = {phase: {"accesses": accesses, "hits": hits} for phase, accesses, hits in by_phase.rows()}
    total = int(ours["hits"].sum())
    equal_with = [words for words, other in variants.items() if not _difference(other, engine)]
    found = {
        "equal": not difference,
        "policy": setup.policy,
        "events": events.num_events,
        "hits": total,
        "engine_hits": engine if isinstance(engine, int) else int(engine["hits"].sum()),
        "phases": {phase: counts[phase] for phase in _PHASES if phase in counts},
        "parts": difference,
        "would_be_equal": equal_with,
    }
    decode: int | None = counts.get("decode", {}).get("hits")
    notes = {
        f"The engine's hits are those of decoding alone, {decode}: give it rows with a phase, or count its prefill.": (
            bool(difference) and isinstance(engine, int) and engine == decode
        ),
        "One number for all hits says that they part, not where: give --engine-rows.": (
            bool(difference) and isinstance(engine, int)
        ),
        **{f"They would be equal with {words}.": True for words in equal_with},
    }
    return {**found, "notes": [note for note, applies in notes.items() if applies]}


def _hits(trace: Trace, setup: Setup, training: Trace | None) -> tuple[Events, pl.DataFrame]:
    """Accesses and hits of each event, with its step, phase and the number of its layer."""
    prepared, budget, _ = parts_of(trace, setup, training, None)
    events = prepared.events
    if prepared.policy.is_lossy(events):
        raise InputError(f"policy {setup.policy}: changes what is computed, so that its hits are no engine's")
    misses_N = sweep_prepared(prepared, [budget], overrun=setup.overrun)[0].misses_N
    accesses_N: I64 = np.diff(events.offsets_N)
    decodes_N = events.is_decode_S[events.step_N]
    single = pl.DataFrame(
        {
            "step": events.step_N.astype(np.int64),
            "phase": np.asarray(_PHASES)[decodes_N.astype(int)],
            "layer": np.asarray(trace.metadata.layer_numbers, np.int64)[events.layer_N],
            "accesses": accesses_N,
            "hits": accesses_N - misses_N,
        }
    )
    # where every access was an event
    return events, single.group_by(KEYS, maintain_order=True).agg(pl.col("accesses", "hits").sum())


def _variants(setup: Setup) -> Iterator[tuple[str, Setup]]:
    """What engines do otherwise, one at a time."""
    yield "--no-overrun" if setup.overrun else "--overrun", replace(setup, overrun=not setup.overrun)
    if not setup.sequential:
        yield "--sequential (accesses one by one)", replace(setup, sequential=True)
    other = "token_by_token" if setup.prefill == "batched" else "batched"
    yield f"--prefill {other}", replace(setup, prefill=other)  # type: ignore[arg-type] # one of two
    yield "--cold" if setup.keep_warm else "without --cold", replace(setup, keep_warm=not setup.keep_warm)


def _difference(ours: pl.DataFrame, engine: int | pl.DataFrame) -> dict[str, Any]:
    """Where they part: nothing where they are equal."""
    if isinstance(engine, int):
        more = engine - int(ours["hits"].sum())
        return {"engine_more": more} if more else {}
    keys = [key for key in KEYS if key in engine.columns]
    both = (
        ours.group_by(keys, maintain_order=True)
        .agg(pl.col("accesses", "hits").sum())
        .join(engine.rename({"hits": "engine_hits"}), on=keys, how="full", coalesce=True, maintain_order="left_right")
    )
    parted = both.filter(~pl.col("hits").eq_missing(pl.col("engine_hits")))
    if parted.is_empty():
        return {}
    found: dict[str, Any] = {"rows": parted.height, "of": both.height, "first": parted.head(_LISTED).to_dicts()}
    surplus = (pl.col("engine_hits").fill_null(0) - pl.col("hits").fill_null(0)).sum()
    for key in ("phase", "layer"):
        if key in keys:
            by_key = parted.group_by(key, maintain_order=True).agg(surplus.alias("engine_more"))
            found[f"engine_more_by_{key}"] = {str(one): count for one, count in by_key.rows()}
    return found
