"""Hidden states beside a trace: what layers of the traced model read, and the weights of its routers.

They are optional, float16, kept for some tokens and layers only, and never in Parquet: a directory of `.npy` files,
memory-mapped, that lies beside a Parquet file or in the working form.

Shape suffixes: T tokens of the trace, S tokens that are kept, Y MoE layers that are kept, L MoE layers, E experts,
D hidden size of the traced model, N any number of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import DAMAGE_ERRORS, InputError, reason_of
from moe_beyond.files import replacing
from moe_beyond.traces.columns import Column

Halves = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
_FILE = "hidden.json"
_VALUES = ("gate_inputs_SYD", "layer_inputs_SYD", "final_states_SD")
_ARRAYS = ("rows_T", *_VALUES)
_ROUTER_ARRAYS = ("weights_LED", "logit_bias_LE", "choice_bias_LE")


@dataclass(frozen=True)
class Routers:
    """The routers of all MoE layers, enough to choose experts for any hidden state as the model would.

    A router multiplies what it reads with a matrix, adds a bias, turns the logits into scores, and takes the experts
    of the highest scores plus a bias of the choice alone, within the best groups of experts where it has groups.

    Attributes:
        weights_LED: float32.
        logit_bias_LE: float32, or None: no bias.
        choice_bias_LE: float32, added to the scores for the choice alone (DeepSeek-V3, arXiv 2412.19437, section
            2.1.2), or None.
        scoring: What turns logits into scores.
        num_groups: Groups of experts side by side; 1: none.
        top_groups: Groups from which experts are chosen.
        group_score: What a group is worth: its best score, or the sum of its two best.
    """

    weights_LED: Floats
    logit_bias_LE: Floats | None = None
    choice_bias_LE: Floats | None = None
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    num_groups: int = 1
    top_groups: int = 1
    group_score: Literal["best", "two_best"] = "best"

    def logits_NE(self, layer: int, inputs_ND: npt.NDArray[np.floating[Any]]) -> Floats:
        """Logits of a layer's router (by index), float32."""
        logits_NE = np.asarray(inputs_ND, np.float32) @ self.weights_LED[layer].T
        return logits_NE if self.logit_bias_LE is None else np.asarray(logits_NE + self.logit_bias_LE[layer])

    def ranks_NE(self, layer: int, inputs_ND: npt.NDArray[np.floating[Any]]) -> Floats:
        """What the router chooses the highest of, float32; minus infinity in groups that it does not choose from."""
        logits_NE = self.logits_NE(layer, inputs_ND)
        if self.choice_bias_LE is None and self.num_groups == 1:
            return logits_NE  # both ways of scoring keep the order
        scores_NE = _softmax(logits_NE) if self.scoring == "softmax" else _sigmoid(logits_NE)
        if self.choice_bias_LE is not None:
            scores_NE = scores_NE + self.choice_bias_LE[layer]
        if self.num_groups == 1:
            return scores_NE
        grouped_NGE = scores_NE.reshape(len(scores_NE), self.num_groups, -1)
        best = 1 if self.group_score == "best" else 2
        worth_NG = np.sort(grouped_NGE, axis=-1)[..., -best:].sum(axis=-1)
        order_NG = np.argsort(-worth_NG, axis=-1, kind="stable")
        out_NG = np.ones(worth_NG.shape, bool)
        np.put_along_axis(out_NG, order_NG[:, : self.top_groups], values=False, axis=-1)
        return np.where(out_NG[..., None], np.float32(-np.inf), grouped_NGE).reshape(scores_NE.shape)

    def choose(self, layer: int, inputs_ND: npt.NDArray[np.floating[Any]], count: int) -> Ids:
        """The `count` experts that a layer's router ranks highest, falling, ties by lower id, int64 [N, count]."""
        return np.argsort(-self.ranks_NE(layer, inputs_ND), axis=-1, kind="stable")[:, :count]


@dataclass(frozen=True)
class HiddenStates:
    """What layers read, of some tokens and some layers.

    Attributes:
        rows_T: int64; the row of each token in the arrays, -1 where nothing of it is kept.
        layers: Indices (0 to L - 1) of the MoE layers that are kept, rising.
        gate_inputs_SYD: What the layer's router read.
        layer_inputs_SYD: The residual stream ahead of the layer's attention, or None. Values beyond float16 are cut to
            its range.
        final_states_SD: What the output head reads after the last layer, or None.
        routers: The model's routers, or None.
    """

    rows_T: Ids
    layers: tuple[int, ...]
    gate_inputs_SYD: Halves
    layer_inputs_SYD: Halves | None = None
    final_states_SD: Halves | None = None
    routers: Routers | None = None

    @property
    def width(self) -> int:
        """Hidden size of the traced model, D."""
        return int(self.gate_inputs_SYD.shape[2])

    def take(self, tokens: Ids) -> HiddenStates:
        """Of these tokens, in this order; the arrays are the same."""
        return replace(self, rows_T=np.asarray(self.rows_T)[tokens])

    def of_layer(self, values_SYD: Halves, layer: int, tokens: slice | Ids) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """A layer's values, zeros where they are not kept, float32 [N, D]; and where they are kept, bool [N].

        Args:
            values_SYD: One of this object's arrays.
            layer: Index of a MoE layer.
            tokens: Of the trace.
        """
        rows_N = np.asarray(self.rows_T[tokens])
        if layer not in self.layers:
            return np.zeros((len(rows_N), self.width), np.float32), np.zeros(len(rows_N), bool)
        kept_N = rows_N >= 0
        values_ND = np.zeros((len(rows_N), self.width), np.float32)
        values_ND[kept_N] = values_SYD[rows_N[kept_N], self.layers.index(layer)]
        return values_ND, kept_N

    def gates_LND(self, tokens: slice | Ids, num_layers: int) -> Floats:
        """What the routers of all layers read, float32 [L, N, D]; zeros where it is not kept."""
        return np.stack([self.of_layer(self.gate_inputs_SYD, layer, tokens)[0] for layer in range(num_layers)])

    def final(self, tokens: slice | Ids) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """As `of_layer`, of `final_states_SD`."""
        rows_N = np.asarray(self.rows_T[tokens])
        kept_N = rows_N >= 0 if self.final_states_SD is not None else np.zeros(len(rows_N), bool)
        values_ND = np.zeros((len(rows_N), self.width), np.float32)
        if self.final_states_SD is not None:
            values_ND[kept_N] = self.final_states_SD[rows_N[kept_N]]
        return values_ND, kept_N

    def compact(self) -> HiddenStates:
        """Without rows that no token has, in the order of the tokens."""
        kept_T = np.asarray(self.rows_T) >= 0
        rows_S = np.asarray(self.rows_T)[kept_T]
        rows_T = np.full(len(self.rows_T), -1, np.int64)
        rows_T[kept_T] = np.arange(len(rows_S))
        return replace(
            self,
            rows_T=rows_T,
            gate_inputs_SYD=np.asarray(self.gate_inputs_SYD[rows_S]),
            layer_inputs_SYD=None if self.layer_inputs_SYD is None else np.asarray(self.layer_inputs_SYD[rows_S]),
            final_states_SD=None if self.final_states_SD is None else np.asarray(self.final_states_SD[rows_S]),
        )


def joined(parts: Sequence[HiddenStates | None]) -> HiddenStates | None:
    """Those of several traces, one after another; None where one has none, or they keep other layers or sizes."""
    states = [part for part in parts if part is not None]
    if len(states) < len(parts) or not states:
        return None
    if len(states) == 1:
        return states[0]
    first = states[0]
    if len({(part.layers, part.width) for part in states}) > 1:
        return None
    names = [name for name in _VALUES if all(getattr(part, name) is not None for part in states)]
    columns, rows, start = {name: Column(np.float16) for name in names}, [], 0
    # one part at a time: together they may be larger than the memory
    for part in (part.compact() for part in states):
        for name, column in columns.items():
            column.append(getattr(part, name))
        rows.append(np.where(part.rows_T >= 0, part.rows_T + start, -1))
        start += len(part.gate_inputs_SYD)
    values: dict[str, Any] = {name: columns[name].array() if name in columns else None for name in _VALUES}
    return replace(first, rows_T=np.concatenate(rows).astype(np.int64), **values)


def beside(parquet: Path) -> Path:
    """The directory of hidden states that belongs to a Parquet file of a trace."""
    return parquet.with_suffix(".hidden")


def holds_hidden(directory: Path) -> bool:
    """Whether `write_hidden` wrote this directory."""
    return (directory / _FILE).is_file()


def write_hidden(hidden: HiddenStates, directory: Path, trace: str = "") -> None:
    """Write the directory, replacing it; rows that no token has are left out.

    Args:
        hidden: What to write.
        directory: Where.
        trace: A digest of the trace that it belongs to; empty: it is not checked when read.

    Raises:
        InputError: What stands there was not written by this function.
    """
    if directory.exists() and not holds_hidden(directory):
        raise InputError(f"{directory}: holds no hidden states, which are to be written there; move it elsewhere")
    hidden, routers = hidden.compact(), hidden.routers
    described: dict[str, Any] = {"layers": hidden.layers, "routers": None, "trace": trace}
    with replacing(directory) as temporary:
        temporary.mkdir()
        for name in _ARRAYS:
            if (array := getattr(hidden, name)) is not None:
                np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        if routers is not None:
            described["routers"] = _save_routers(routers, temporary)
        (temporary / _FILE).write_text(json.dumps(described), encoding="utf-8")


def write_routers(routers: Routers, directory: Path) -> None:
    """Add routers to a directory of hidden states, or replace those that it has."""
    described = json.loads((directory / _FILE).read_text(encoding="utf-8"))
    described["routers"] = _save_routers(routers, directory)
    # last: arrays that it does not name are not read
    with replacing(directory / _FILE) as temporary:
        temporary.write_text(json.dumps(described), encoding="utf-8")


def _save_routers(routers: Routers, directory: Path) -> dict[str, Any]:
    """Write the arrays; what is to be said of them beside."""
    for name in _ROUTER_ARRAYS:
        if (array := getattr(routers, name)) is not None:
            np.save(directory / f"router_{name}.npy", array, allow_pickle=False)
    return {name: getattr(routers, name) for name in ("scoring", "num_groups", "top_groups", "group_score")}


def open_hidden(directory: Path, num_tokens: int, trace: str = "") -> HiddenStates | None:
    """Open a directory of hidden states, memory-mapped; None if there is none.

    Args:
        directory: As `write_hidden` made it.
        num_tokens: Of the trace that it belongs to.
        trace: Digest of that trace, as `write_hidden` was given it; empty: not checked.

    Raises:
        InputError: It is damaged, or belongs to another trace.
    """
    if not holds_hidden(directory):
        return None
    try:
        described = json.loads((directory / _FILE).read_text(encoding="utf-8"))
        if trace and described.get("trace", "") not in ("", trace):
            raise ValueError("they are another trace's")
        arrays = {name: _map(directory / f"{name}.npy") for name in _ARRAYS}
        routers = None
        if described["routers"] is not None:
            weights = {name: _map(directory / f"router_{name}.npy") for name in _ROUTER_ARRAYS}
            routers = Routers(**weights, **described["routers"])  # type: ignore[arg-type]
        hidden = HiddenStates(layers=tuple(described["layers"]), routers=routers, **arrays)  # type: ignore[arg-type]
        _check(hidden, num_tokens)
    except DAMAGE_ERRORS as error:
        reason = reason_of(error)
        raise InputError(f"{directory}: damaged hidden states ({reason}); write or fetch the trace again") from error
    return hidden


def _map(path: Path) -> npt.NDArray[Any] | None:
    return np.load(path, mmap_mode="r", allow_pickle=False) if path.exists() else None


def _check(hidden: HiddenStates, num_tokens: int) -> None:
    kept, layers, width = hidden.gate_inputs_SYD.shape
    rows_T = np.asarray(hidden.rows_T)
    if rows_T.shape != (num_tokens,) or rows_T.dtype != np.int64:
        raise ValueError(f"rows of {len(rows_T)} tokens, the trace has {num_tokens}")
    if rows_T.min(initial=-1) < -1 or rows_T.max(initial=-1) >= kept:
        raise ValueError(f"a row outside 0 to {kept - 1}")
    if layers != len(hidden.layers) or list(hidden.layers) != sorted(set(hidden.layers)):
        raise ValueError(f"values of {layers} layers, named are {list(hidden.layers)[:8]}")
    shapes = {"gate_inputs_SYD": (kept, layers, width), "layer_inputs_SYD": (kept, layers, width)}
    for name, shape in {**shapes, "final_states_SD": (kept, width)}.items():
        values = getattr(hidden, name)
        if values is not None and (values.shape != shape or values.dtype != np.float16):
            raise ValueError(f"{name} is {values.dtype} {values.shape}, expected float16 {shape}")
    if hidden.routers is not None and hidden.routers.weights_LED.shape[2] != width:
        raise ValueError(f"routers read {hidden.routers.weights_LED.shape[2]} values, hidden states have {width}")


def _softmax(logits_NE: Floats) -> Floats:
    powers_NE = np.exp(logits_NE - logits_NE.max(axis=-1, keepdims=True))
    return np.asarray(powers_NE / powers_NE.sum(axis=-1, keepdims=True), np.float32)


def _sigmoid(logits_NE: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits_NE)), np.float32)
