"""BigMoeOnEdge's `route.csv`: what a phone's engine routed, with combine weights and byte sizes per layer.

Comment lines name the model's shape (`# model=... n_expert=128 n_expert_used=6`) and each layer's `expert_bytes`. Then
a row a routed expert: `turn,phase,step,layer,slot,expert,weight,residency,expert_bytes`; phase 0 is prefill, 1 decode,
a step is a token, a turn becomes a prompt. The last two columns say what the phone's own cache did and are not read.

The engine runs a prefill as one batch and its last layer for the last prompt token alone, the only one whose output is
needed. The prompt's other tokens repeat that token's experts there, with weight 0: so the batch uses exactly the
experts that it used on the phone. Shape suffixes as in `schema`; A rows, each of which is one access.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.csv_table import CsvTable
from moe_beyond.formats.importers.sources import name_of, read_each
from moe_beyond.traces.schema import RoutedPrompt, Trace, TraceMetadata, concatenate, trace_of

_INTEGERS = ("turn", "phase", "step", "layer", "slot", "expert")
_PREFILL, _DECODE = 0, 1
_STEPS = 10**10  # more than any step, so that one number names turn and step


def read(source: Path, domain: str | None) -> Trace:
    """Read one `route.csv` (also gzipped), or all of a folder or archive; they must be of one model.

    Raises:
        InputError: A rule of the format is broken; names file and row.
    """
    read_each_file = read_each(
        source, "route.csv", lambda stream, name, where: (where, _read_file(stream, name, where, domain))
    )
    traces = list(read_each_file)
    for where, trace in traces:
        traces[0][1].metadata.require_same_model(trace.metadata, where)
    return concatenate([trace for _, trace in traces])


def _read_file(stream: IO[bytes], name: str, where: str, domain: str | None) -> Trace:
    data, domain = stream.read(), domain or name_of(Path(name))
    meta = _read_metadata(data, where)
    table = CsvTable.read(data, (*_INTEGERS, "weight"), where, comment="#")
    turn_A, phase_A, step_A, number_A, slot_A, expert_A = (table.integers(name) for name in _INTEGERS)
    table.refuse(phase_A > _DECODE, "phase", "0 (prefill) or 1 (decode)")
    table.refuse(~np.isin(number_A, meta.layer_numbers), "layer", "a layer that the header lists")
    table.refuse(slot_A >= meta.top_k, "slot", f"0 to {meta.top_k - 1}")
    table.refuse(expert_A >= meta.num_experts, "expert", f"0 to {meta.num_experts - 1}")
    layer_A = np.searchsorted(meta.layer_numbers, number_A)

    # tokens in order of turn and step; a step of the engine is a token
    keys_T, token_A = np.unique(turn_A * _STEPS + step_A, return_inverse=True)
    shape = (len(keys_T), meta.num_layers, meta.top_k)
    # before anything of that shape is allocated: a header can claim any size
    if len(expert_A) < len(keys_T) * (meta.num_layers - 1) * meta.top_k:
        raise InputError(
            f"{where}: {len(expert_A)} rows for {len(keys_T)} tokens; every token needs {meta.top_k} in each of "
            f"{meta.num_layers} layers"
        )
    place_A = (token_A, layer_A, slot_A)
    experts_TLK, count_TLK = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    weights_TLK = np.zeros(shape, np.float16)
    np.add.at(count_TLK, place_A, 1)
    table.refuse(count_TLK[place_A] > 1, "slot", "one row for each turn, step, layer and slot")
    experts_TLK[place_A] = expert_A
    weights_TLK[place_A] = table.weights("weight")
    phase_T = np.zeros(len(keys_T), np.int64)
    phase_T[token_A] = phase_A
    table.refuse(phase_T[token_A] != phase_A, "phase", "one phase a step")

    turn_T = keys_T // _STEPS
    gaps = (np.diff(keys_T) != 1) & (np.diff(turn_T) == 0)
    if gaps.any():
        turn, step = divmod(int(keys_T[int(np.argmax(gaps))]), _STEPS)
        raise InputError(f"{where}: turn {turn}: step {step + 1} is missing; a turn's steps must be consecutive")
    if keys_T[0] % _STEPS:
        raise InputError(
            f"{where}: turn {turn_T[0]}: step 0 is missing; the trace must begin with the prompt's first token"
        )
    prompts = []
    starts = np.unique(turn_T, return_index=True)[1]
    for start, end in itertools.pairwise([*starts.tolist(), len(keys_T)]):
        turn, prefill = int(turn_T[start]), int((phase_T[start:end] == _PREFILL).sum())
        if (phase_T[start : start + prefill] != _PREFILL).any():
            raise InputError(f"{where}: turn {turn} has decode before prefill; correct the column phase")
        _fill_last_layer(experts_TLK[start : start + prefill], count_TLK[start : start + prefill])
        ids, weights = experts_TLK[start:end], weights_TLK[start:end]
        prompts.append(RoutedPrompt(f"{domain}/turn_{turn}", domain, prefill, ids, weights))
    _require_complete(count_TLK, keys_T, meta, where)
    return trace_of(meta, prompts)


def _fill_last_layer(experts_TLK: npt.NDArray[np.int64], count_TLK: npt.NDArray[np.int64]) -> None:
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
        turn, step = divmod(int(keys_T[token]), _STEPS)
        raise InputError(
            f"{where}: turn {turn}, step {step}, layer {meta.layer_numbers[layer]}: no row for slot {slot}; "
            f"every token needs {meta.top_k} experts in every layer"
        )


def _read_metadata(data: bytes, where: str) -> TraceMetadata:
    head = itertools.takewhile(lambda line: line.startswith(b"#"), data.splitlines())
    comments = b"\n".join(head).decode("utf-8", "replace")

    def field(pattern: str) -> str:
        found = re.search(pattern, comments)
        if found is None:
            raise InputError(f"{where}: no comment line with {pattern!r}; expected the header of a route_trace v1")
        return found.group(1)

    lines = re.findall(
        r"^# layer=([0-9]{1,6}) expert_bytes=([0-9]{1,15})\b(?: dense_bytes=([0-9]{1,15})\b)?", comments, re.MULTILINE
    )
    # a dense layer has no experts
    sizes = {int(layer): int(size) for layer, size, _ in lines if int(size) > 0}
    dense = {int(layer): int(size) for layer, _, size in lines if size}
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
        dense_bytes=_dense_bytes(sorted(sizes), dense),
        source="BigMoeOnEdge route trace (https://github.com/Helldez/BigMoeOnEdge, docs/bench-data)",
        licence="Apache-2.0",
    )


def _dense_bytes(layers: list[int], dense: dict[int, int]) -> tuple[int, ...] | None:
    """By MoE layer; a layer without experts counts with the next one that has some, or with the last."""
    if dense.keys() < set(layers):
        return None
    summed = dict.fromkeys(layers, 0)
    for layer, size in dense.items():
        summed[next((moe for moe in layers if moe >= layer), layers[-1])] += size
    return tuple(summed.values())
