"""BigMoeOnEdge's `route.csv`: what a phone's engine routed, with combine weights and byte sizes per layer.

Comment lines name the model's shape (`# model=... n_expert=128 n_expert_used=6`) and each layer's `expert_bytes`. Then
a row a routed expert: `turn,phase,step,layer,slot,expert,weight,residency,expert_bytes`; phase 0 is prefill, 1 decode,
a step is a token, a turn becomes a prompt. The last two columns say what the phone's own cache did and are not read.

The engine runs a prefill as one batch and its last layer for the last prompt token alone, the only one whose output is
wanted. The prompt's other tokens repeat that token's experts there, with weight 0: so the batch asks for exactly the
experts that the phone asked for. Shape suffixes as in `schema`.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.csv_table import CsvTable
from moe_beyond.formats.importers.sources import locate, members, name_of, natural_order
from moe_beyond.traces.schema import ExpertIds, Trace, TraceMetadata, concatenate, empty_experts

_COLUMNS = ("turn", "phase", "step", "layer", "slot", "expert", "weight")
_PREFILL, _DECODE = 0, 1


def read(source: Path, domain: str | None) -> Trace:
    """Read one `route.csv` (also gzipped), or all of a folder or archive; they must be of one model.

    Raises:
        InputError: A rule of the format is broken; names file and row.
    """
    traces: dict[str, Trace] = {}
    for name, stream in members(source, "route.csv"):
        where = locate(source, name)
        traces[name] = _read_file(stream.read(), where, domain or name_of(Path(name)))
        next(iter(traces.values())).metadata.require_same_model(traces[name].metadata, where)
    return concatenate([traces[name] for name in sorted(traces, key=natural_order)])


@dataclass(frozen=True)
class _Rows:
    """A file's rows as integer columns, and the table to name one of them."""

    table: CsvTable
    turn: npt.NDArray[np.int64]
    phase: npt.NDArray[np.int64]
    step: npt.NDArray[np.int64]
    layer: npt.NDArray[np.int64]
    """Index of the MoE layer."""
    slot: npt.NDArray[np.int64]


def _read_file(data: bytes, where: str, domain: str) -> Trace:
    meta = _read_metadata(data, where)
    table = CsvTable.read(data, _COLUMNS, where, comment="#")
    rows = _read_rows(table, meta)
    expert = table.integers("expert")
    _refuse(table, expert >= meta.num_experts, "expert", f"0 to {meta.num_experts - 1}")

    # tokens in order of turn and step; a step of the engine is a token
    step_key = rows.turn * 10**10 + rows.step
    keys_T, token = np.unique(step_key, return_inverse=True)
    shape = (len(keys_T), meta.num_layers, meta.top_k)
    # before anything of that shape is allocated: a header can claim any size
    if len(expert) < len(keys_T) * (meta.num_layers - 1) * meta.top_k:
        raise InputError(
            f"{where}: {len(expert)} rows for {len(keys_T)} tokens; every token needs {meta.top_k} in each of "
            f"{meta.num_layers} layers"
        )
    experts_TLK = empty_experts(shape, meta.num_experts)
    weights_TLK = np.zeros(shape, np.float16)
    count_TLK = np.zeros(shape, np.int64)
    np.add.at(count_TLK, (token, rows.layer, rows.slot), 1)
    twice = count_TLK[token, rows.layer, rows.slot] > 1
    _refuse(table, twice, "slot", "one row for each turn, step, layer and slot")
    experts_TLK[token, rows.layer, rows.slot] = expert
    weights_TLK[token, rows.layer, rows.slot] = table.weights("weight")

    phase_T = np.zeros(len(keys_T), np.int64)
    phase_T[token] = rows.phase
    _refuse(table, phase_T[token] != rows.phase, "phase", "one phase a step")
    turn_T = keys_T // 10**10
    turns, starts = np.unique(turn_T, return_index=True)
    offsets = np.append(starts, len(keys_T)).astype(np.int64)
    gaps = (np.diff(keys_T) != 1) & (np.diff(turn_T) == 0)
    if gaps.any():
        turn, step = divmod(int(keys_T[int(np.argmax(gaps))]), 10**10)
        raise InputError(f"{where}: turn {turn}: step {step + 1} is missing; a turn's steps must be consecutive")
    num_prefill = np.array([int((phase_T[a:b] == _PREFILL).sum()) for a, b in itertools.pairwise(offsets)])
    for start, prefill in zip(starts, num_prefill, strict=True):
        if (phase_T[start : start + prefill] != _PREFILL).any():
            raise InputError(f"{where}: turn {turn_T[start]} has decode before prefill; mend the column phase")
        _fill_last_layer(experts_TLK[start : start + prefill], count_TLK[start : start + prefill])
    _require_complete(count_TLK, keys_T, meta, where)
    return Trace(
        metadata=meta,
        prompt_ids=tuple(f"{domain}/turn_{turn}" for turn in turns.tolist()),
        domains=(domain,) * len(turns),
        held_out_P=np.zeros(len(turns), np.bool_),
        prompt_offsets=offsets,
        num_prefill_P=num_prefill.astype(np.int32),
        experts_TLK=experts_TLK,
        weights_TLK=weights_TLK,
    )


def _read_rows(table: CsvTable, meta: TraceMetadata) -> _Rows:
    phase, number, slot = table.integers("phase"), table.integers("layer"), table.integers("slot")
    layers = np.array(meta.layer_numbers)
    _refuse(table, phase > _DECODE, "phase", "0 (prefill) or 1 (decode)")
    _refuse(table, ~np.isin(number, layers), "layer", "a layer that the header lists")
    _refuse(table, slot >= meta.top_k, "slot", f"0 to {meta.top_k - 1}")
    return _Rows(table, table.integers("turn"), phase, table.integers("step"), np.searchsorted(layers, number), slot)


def _fill_last_layer(experts_TLK: ExpertIds, count_TLK: npt.NDArray[np.int64]) -> None:
    """Repeat the last prompt token's experts of the last layer where the engine skipped them, in place."""
    skipped = count_TLK[:, -1].sum(axis=1) == 0
    if len(skipped) and skipped[:-1].all() and not skipped[-1]:
        experts_TLK[:-1, -1] = experts_TLK[-1, -1]
        count_TLK[:-1, -1] = 1


def _require_complete(
    count_TLK: npt.NDArray[np.int64], keys_T: npt.NDArray[np.int64], meta: TraceMetadata, where: str
) -> None:
    holes = np.nonzero(count_TLK == 0)
    if len(holes[0]):
        token, layer, slot = (int(index[0]) for index in holes)
        turn, step = divmod(int(keys_T[token]), 10**10)
        raise InputError(
            f"{where}: turn {turn}, step {step}, layer {meta.layer_numbers[layer]}: no row for slot {slot}; "
            f"every token needs {meta.top_k} experts in every layer"
        )


def _refuse(table: CsvTable, wrong: npt.NDArray[np.bool_], column: str, expected: str) -> None:
    if wrong.any():
        index = int(np.argmax(wrong))
        raise InputError(f"{table.at(index)}: {column} is {table.columns[column][index]}, expected {expected}")


def _read_metadata(data: bytes, where: str) -> TraceMetadata:
    head = []
    for line in data.splitlines():
        if not line.startswith(b"#"):
            break
        head.append(line.decode("utf-8", "replace"))
    comments = "\n".join(head)

    def field(pattern: str) -> str:
        found = re.search(pattern, comments)
        if found is None:
            raise InputError(f"{where}: no comment line with {pattern!r}; expected the header of a route_trace v1")
        return found.group(1)

    sizes = {
        int(layer): int(size)
        for layer, size in re.findall(r"^# layer=([0-9]{1,6}) expert_bytes=([0-9]{1,15})\b", comments, re.MULTILINE)
        if int(size) > 0  # a dense layer has no experts
    }
    if not sizes:
        raise InputError(
            f"{where}: no comment line with '# layer=... expert_bytes=...'; expected one for each MoE layer"
        )
    num_experts, top_k = int(field(r"\bn_expert=([0-9]{1,5})\b")), int(field(r"\bn_expert_used=([0-9]{1,5})\b"))
    if not 1 <= top_k <= num_experts or not 2 <= num_experts <= 65536:
        raise InputError(f"{where}: n_expert={num_experts}, n_expert_used={top_k} in the header are no MoE's shape")
    return TraceMetadata(
        model_id=PurePosixPath(field(r"\bmodel=(\S+)")).name.removesuffix(".gguf") or "unknown",
        layer_numbers=tuple(sorted(sizes)),
        num_experts=num_experts,
        top_k=top_k,
        expert_bytes=tuple(sizes[layer] for layer in sorted(sizes)),
        source="BigMoeOnEdge route trace (https://github.com/Helldez/BigMoeOnEdge, docs/bench-data)",
        licence="Apache-2.0",
    )
