"""Traces of the llama.cpp forks with a tool `moe-trace`.

They write one of these:

- a: CSV `pos,layer,id,id,...` without a header; pos below 0 for the prompt, from 0 for decode steps
- b: JSON Lines `{"pos", "layer", "experts"}`; absolute positions, prefill not marked
- c: binary, i32 layer, i32 tokens, i32 k, tokens x k i32 ids; batches of several tokens are prefill
- d: text `prompt step layer id ...`; decode steps alone
- f: CSV with the header `phase,token,layer,rank,expert`

(Variant e, `layer,expert`, is what `llamacpp_csv` reads.) All number the model's layers. The numbers that variant a
gives to a prompt's tokens repeat from batch to batch: there the order of the rows counts. A position that falls back
begins another prompt. Shape suffixes as in `passes` and `rows`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.engine_log import Table, layer_records, lines_of, read_logs, whole
from moe_beyond.formats.importers.lattice import json_rows
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride
from moe_beyond.formats.importers.passes import Passes
from moe_beyond.formats.importers.rows import Rows
from moe_beyond.traces.schema import Trace


def read(variant: str, source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read the files of a folder or archive, or one file. Raises InputError as `read_logs`."""
    suffix, parse = _VARIANTS[variant]
    return read_logs(source, domain, override, suffix=suffix, parse=parse, origin=f"llama.cpp moe-trace, {variant}")


def _integers(
    data: bytes, where: str, separator: str | None, fewest: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers of the lines, and the whole numbers in each, [lines, numbers]."""
    numbers, table = Table(where), Table(where)
    for number, line in lines_of(data, where):
        at, cells = f"{where}: line {number}", line.split(separator)
        if len(cells) < fewest:
            raise InputError(f"{at}: {len(cells)} numbers, expected {fewest} and more; check the format")
        numbers.add([number], number)
        table.add([whole(cell, "a field", at) for cell in cells], number)
    return numbers.array()[:, 0], table.array()


def _a(data: bytes, where: str) -> Passes:
    numbers, table = _integers(data, where, ",", 3)
    position_R, layer_R = table[:, 0], table[:, 1]
    decoded_R = position_R >= 0
    step_R = np.diff(position_R, prepend=position_R[0])
    both_R = decoded_R & np.concatenate([[True], decoded_R[:-1]])
    if (both_R & (step_R > 1)).any():
        row = int(np.argmax(both_R & (step_R > 1)))
        raise InputError(
            f"{where}: line {numbers[row]}: step {position_R[row]} follows {position_R[row - 1]}; one is missing"
        )
    first_R = decoded_R & ((step_R < 0) | ~np.concatenate([[False], decoded_R[:-1]]))
    if (position_R[first_R] != 0).any():
        row = int(np.argmax(first_R & (position_R != 0)))
        raise InputError(
            f"{where}: line {numbers[row]}: decoding begins with step {position_R[row]}; step 0 is missing"
        )
    return Passes(
        where,
        layer_R,
        np.ones(len(table), np.int64),
        table[:, 2:],
        what="line",
        number_R=numbers,
        prefill_R=~decoded_R,
        starts_R=both_R & (step_R < 0),
        whole_layers=False,
    )


def _b(data: bytes, where: str) -> Rows:
    return json_rows(data, where, ("pos", "layer", "experts", None))


def _c(data: bytes, where: str) -> Passes:
    heads, ids_AK = layer_records(data, where, head="<iii", fields=("layer", "tokens", "k"))
    # one fork writes a record twice; in a batch a layer comes once
    ends = np.cumsum(heads[:, 1])
    doubled = np.flatnonzero((heads[1:] == heads[:-1]).all(axis=1)) + 1
    same = [
        r
        for r in doubled.tolist()
        if (ids_AK[ends[r] - heads[r, 1] : ends[r]] == ids_AK[_before(ends, heads, r)]).all()
    ]
    kept = np.setdiff1d(np.arange(len(heads)), same)
    access = np.isin(np.repeat(np.arange(len(heads)), heads[:, 1]), kept)
    return Passes(where, heads[kept, 0], heads[kept, 1], ids_AK[access], number_R=kept)


def _before(ends: npt.NDArray[np.int64], heads: npt.NDArray[np.int64], record: int) -> slice:
    end = int(ends[record - 1])
    return slice(end - int(heads[record - 1, 1]), end)


def _d(data: bytes, where: str) -> Rows:
    numbers, table = _integers(data, where, None, 4)
    prompts, prompt_R = np.unique(table[:, 0], return_inverse=True)
    return Rows(
        where,
        lambda row: f"{where}: line {numbers[row]}",
        table[:, 1],
        table[:, 2],
        table[:, 3:],
        prefill_R=np.zeros(len(table), np.bool_),
        prompt_R=prompt_R,
        names=[f"prompt_{prompt}" for prompt in prompts.tolist()] if len(prompts) > 1 else [""],
    )


_HEADER, _PHASES = "phase,token,layer,rank,expert", {"decode": 0, "prefill": 1}


def _f(data: bytes, where: str) -> Rows:
    table = Table(where)
    for number, line in lines_of(data, where):
        at, cells = f"{where}: line {number}", line.split(",")
        if number == 1 and line == _HEADER:
            continue
        if number == 1 or len(cells) != 5 or cells[0] not in _PHASES:
            raise InputError(f"{at}: {line!r:.60}, expected the header {_HEADER}, then a phase and four numbers")
        table.add([number, _PHASES[cells[0]], *(whole(cell, "a field", at) for cell in cells[1:])], number)
    number_A, phase_A, token_A, layer_A, rank_A, expert_A = table.array().T
    pairs, pair_A = np.unique(np.stack([token_A, layer_A], axis=1), axis=0, return_inverse=True)
    top_k = int(rank_A.max()) + 1
    # before anything of that shape is allocated
    if rank_A.min() < 0 or len(token_A) != len(pairs) * top_k:
        raise InputError(
            f"{where}: {len(token_A)} rows for {len(pairs)} pairs of token and layer, ranks {rank_A.min()} to "
            f"{top_k - 1}; expected each rank once a pair"
        )
    row_RK = np.full((len(pairs), top_k), -1)
    row_RK[pair_A, rank_A] = np.arange(len(token_A))
    wrong = (row_RK[pair_A, rank_A] != np.arange(len(token_A))) | (phase_A != phase_A[row_RK[:, 0]][pair_A])
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"{where}: line {number_A[row]}: token {token_A[row]}, layer {layer_A[row]}, rank {rank_A[row]} twice, or "
            "in two phases; does a second prompt begin here? Split the file at this place"
        )
    return Rows(
        where,
        lambda row: f"{where}: line {number_A[row_RK[row, 0]]}",
        pairs[:, 0],
        pairs[:, 1],
        expert_A[row_RK],
        prefill_R=phase_A[row_RK[:, 0]] > 0,
    )


_VARIANTS: dict[str, tuple[str, Callable[[bytes, str], Passes | Rows]]] = {
    "a": (".csv", _a),
    "b": (".jsonl", _b),
    "c": (".bin", _c),
    "d": (".txt", _d),
    "f": (".csv", _f),
}
READERS: dict[str, Callable[[Path, str | None, ShapeOverride], Trace]] = {
    f"moe-trace-{variant}": partial(read, variant) for variant in _VARIANTS
}
"""The variants by the name of their format."""
