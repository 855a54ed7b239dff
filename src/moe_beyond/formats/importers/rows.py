"""Routing in rows that name their token and layer, in any order.

Shape suffixes as in `schema`; R rows, each one token in one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.routed import Routed, layer_places, require_experts, require_fewer
from moe_beyond.traces.schema import TraceMetadata

Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Rows:
    """Rows of one file.

    Attributes:
        where: Names the file in messages.
        at: Names a row in messages.
        token_R: Position of each row's token; consecutive in a prompt.
        layer_R: Layer of each row, numbered as in the model.
        experts_RK: Experts.
        weights_RK: Combine weights, or None.
        num_experts: Experts of a layer where the file says it.
        prefill_R: True for prefill; None: the file does not say.
        prompt_R: Places in `names`; None: one prompt.
        names: Names of the prompts.
    """

    where: str
    at: Callable[[int], str]
    token_R: Integers
    layer_R: Integers
    experts_RK: Integers
    weights_RK: npt.NDArray[np.floating[Any]] | None = None
    num_experts: int | None = None
    prefill_R: npt.NDArray[np.bool_] | None = None
    prompt_R: Integers | None = None
    names: Sequence[str] = ("",)


def routed_rows(rows: Rows, shape: TraceMetadata) -> list[Routed]:
    """The prompts of a file, in order of `names`.

    Raises:
        InputError: An expert or layer that the model has not; a token and layer twice or missing; decode before
            prefill.
    """
    if not len(rows.token_R):
        raise InputError(f"{rows.where}: routing of no tokens; remove the file")
    require_fewer(len(rows.token_R), rows.where)
    place_R = layer_places(rows.layer_R, np.array(shape.layer_numbers), rows.at)
    require_experts(rows.experts_RK, rows.weights_RK, shape, rows.at)
    prompt_R = np.zeros(len(rows.token_R), np.int64) if rows.prompt_R is None else rows.prompt_R
    chosen = (np.flatnonzero(prompt_R == prompt) for prompt in range(len(rows.names)))
    return [_prompt(rows, place_R, own, name, shape) for own, name in zip(chosen, rows.names, strict=True)]


def _prompt(rows: Rows, place_R: Integers, chosen: Integers, name: str, shape: TraceMetadata) -> Routed:
    tokens_T, token_C = np.unique(rows.token_R[chosen], return_inverse=True)
    layer_C = place_R[chosen]
    prompt = f"prompt {name!r:.60}, " if name else ""
    # before anything of that shape is allocated
    if len(chosen) < len(tokens_T) * (shape.num_layers - 1):
        raise InputError(
            f"{rows.where}: {prompt}{len(chosen)} rows for {len(tokens_T)} tokens; every token needs one in each of "
            f"{shape.num_layers} layers"
        )
    if tokens_T[-1] - tokens_T[0] != len(tokens_T) - 1:
        gap = int(np.argmax(np.diff(tokens_T) != 1))
        raise InputError(f"{rows.where}: {prompt}token {tokens_T[gap] + 1} is missing; tokens must be consecutive")
    if tokens_T[0] != 0:
        raise InputError(f"{rows.where}: {prompt}token 0 is missing; a trace begins with its first token")
    row_TL = np.full((len(tokens_T), shape.num_layers), -1)
    row_TL[token_C, layer_C] = chosen
    doubled = row_TL[token_C, layer_C] != chosen
    if doubled.any():
        row = int(chosen[np.argmax(doubled)])
        raise InputError(
            f"{rows.at(row)}: {prompt}token {rows.token_R[row]}, layer {rows.layer_R[row]} is there twice; does a "
            "second prompt begin here? Split the file at this place"
        )
    num_prefill = None
    if rows.prefill_R is not None:
        prefill_T = np.zeros(len(tokens_T), np.bool_)
        prefill_T[token_C] = rows.prefill_R[chosen]
        if (prefill_T[token_C] != rows.prefill_R[chosen]).any() or (np.diff(prefill_T.astype(np.int8)) > 0).any():
            raise InputError(f"{rows.where}: {prompt}decode before prefill, or a token that is both; correct the phase")
        num_prefill = int(prefill_T.sum())
        # the engine computed the last layer of the prompt for its last token alone
        prefilled_T = row_TL[:num_prefill, -1]
        if num_prefill > 1 and (prefilled_T[:-1] < 0).all() and prefilled_T[-1] >= 0:
            repeated = np.arange(num_prefill - 1)
            row_TL[repeated, -1] = prefilled_T[-1]
        else:
            repeated = np.arange(0)
    else:
        repeated = np.arange(0)
    if (row_TL < 0).any():
        token, layer = (int(index[0]) for index in np.nonzero(row_TL < 0))
        raise InputError(
            f"{rows.where}: {prompt}token {tokens_T[token]}, layer {shape.layer_numbers[layer]}: no row; every token "
            "needs one in every layer with experts"
        )
    weights_TLK = None if rows.weights_RK is None else rows.weights_RK[row_TL]
    if weights_TLK is not None:
        weights_TLK[repeated, -1] = 0
    return Routed(rows.experts_RK[row_TL], weights_TLK, num_prefill, name)
