"""Routing in the order in which an engine computed it: batch after batch, in a batch layer after layer.

What a batch is follows from that order: a layer number that falls begins a new one. A batch of several tokens is
prefill, one of a single token decode, unless the file marks them. For the last layer of a prompt engines of llama.cpp's
kind compute the last token alone, the only one whose output is needed, and in batches before the prompt's last one
none: the others repeat its experts with weight 0, so that the prefill uses nothing more.

Shape suffixes as in `schema`; R records, A routed tokens of them all, S steps of prefill or decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.routed import Routed, layer_places, require_experts, require_fewer
from moe_beyond.traces.schema import TraceMetadata

Integers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Passes:
    """Records of one file in its order.

    Attributes:
        where: Names the file in messages.
        layer_R: Layer of each record, as the file numbers them.
        tokens_R: Tokens of each record.
        experts_AK: Experts of the records' tokens, one after another.
        weights_AK: Combine weights, or None.
        hidden_AD: What the router was given, or None.
        num_experts: Experts of a layer where the file says it.
        what: What a record is called in messages.
        number_R: Number of each record in messages; None: they count from 0.
        prefill_R: Marks of the file; None: the size of a batch decides.
        starts_R: True where the file says that a prompt begins; None: it does not.
        whole_layers: A record holds all tokens of a batch; otherwise records of one layer in a row are one batch.
        by_order: Layers are numbered as the MoE layers come, from 0.
        extra_layer: Records of the layer after the last are a draft head's (MTP), and left out.
        may_be_cut: A last batch that is not complete is left out.
        one_prompt: The file holds one prompt, which begins with the first batch whatever its size.
        unmarked: Neither marks nor sizes of batches tell prefill from decode; a person must.
    """

    where: str
    layer_R: Integers
    tokens_R: Integers
    experts_AK: Integers
    weights_AK: Floats | None = None
    hidden_AD: npt.NDArray[np.float16] | None = None
    num_experts: int | None = None
    what: str = "record"
    number_R: Integers | None = None
    prefill_R: Flags | None = None
    starts_R: Flags | None = None
    whole_layers: bool = True
    by_order: bool = False
    extra_layer: bool = False
    may_be_cut: bool = False
    one_prompt: bool = False
    unmarked: bool = False

    def at(self, record: Any) -> str:
        """Name a record in a message."""
        number = int(record) if self.number_R is None else int(self.number_R[record])
        return f"{self.where}: {self.what} {number}"


def routed_passes(log: Passes, shape: TraceMetadata, num_layers: int) -> list[Routed]:
    """The prompts of a file.

    Args:
        log: The file.
        shape: The model's shape.
        num_layers: Its decoder layers, dense ones included.

    Raises:
        InputError: An expert or a layer that the model has not, a batch without one of its layers, or tokens that
            cannot be assigned to a prompt.
    """
    if shape.num_layers < 2:
        raise InputError(f"{log.where}: a model with one MoE layer; its batches cannot be told apart in this format")
    if log.extra_layer:
        log = _only(log, np.flatnonzero(log.layer_R != num_layers))
    if not len(log.layer_R):
        raise InputError(f"{log.where}: routing of no tokens; remove the file")
    require_fewer(int(log.tokens_R.sum()), log.where)
    numbers = np.arange(shape.num_layers) if log.by_order else np.array(shape.layer_numbers)
    layer_R = layer_places(log.layer_R, numbers, log.at, " by their order" * log.by_order)
    token_R = np.repeat(np.arange(len(log.layer_R)), log.tokens_R)
    require_experts(log.experts_AK, log.weights_AK, shape, lambda access: log.at(token_R[access]))
    begins_R = np.concatenate([[True], np.diff(layer_R) < 0])
    for marks in (log.prefill_R, log.starts_R):
        if marks is not None:
            begins_R[1:] |= (marks[1:] != marks[:-1]) if marks is log.prefill_R else marks[1:]
    return _prompts(log, _runs(log, layer_R, begins_R, shape.num_layers), shape)


def _only(log: Passes, kept: Integers) -> Passes:
    """The log of some of its records."""
    access = np.isin(np.repeat(np.arange(len(log.layer_R)), log.tokens_R), kept)
    columns = {name: getattr(log, name) for name in ("layer_R", "tokens_R", "prefill_R", "starts_R")}
    columns["number_R"] = np.arange(len(log.layer_R)) if log.number_R is None else log.number_R
    return Passes(
        **{
            **vars(log),
            **{name: None if column is None else column[kept] for name, column in columns.items()},
            "experts_AK": log.experts_AK[access],
            "weights_AK": None if log.weights_AK is None else log.weights_AK[access],
            "hidden_AD": None if log.hidden_AD is None else log.hidden_AD[access],
        }
    )


@dataclass(frozen=True)
class _Runs:
    """Batches: first record, first token and size of each; and each record's place in them.

    Attributes:
        record_B: First record of each batch.
        size_B: Tokens of each batch.
        complete_B: True where the batch has its last layer.
        alone_B: True where the last layer has one token of several.
        layer_A: Place of the layer of each routed token.
        token_A: Place of each routed token among the tokens of all batches.
        accesses: How many routed tokens belong to these batches.
    """

    record_B: Integers
    size_B: Integers
    complete_B: Flags
    alone_B: Flags
    layer_A: Integers
    token_A: Integers
    accesses: int


def _runs(log: Passes, layer_R: Integers, begins_R: Flags, num_layers: int) -> _Runs:
    run_begins_R = begins_R | np.concatenate([[True], np.diff(layer_R) != 0])
    if log.whole_layers and not run_begins_R.all():
        record = int(np.argmin(run_begins_R))
        raise InputError(
            f"{log.at(record)}: layer {log.layer_R[record]} a second time in a row; does another run begin here? "
            "Split the file at this place"
        )
    firsts = np.flatnonzero(run_begins_R)
    batch_N = np.cumsum(begins_R)[firsts] - 1
    tokens_N = np.add.reduceat(log.tokens_R, firsts)
    layer_N, begins_B = layer_R[firsts], np.flatnonzero(begins_R[firsts])
    layers_B, size_B = np.bincount(batch_N), tokens_N[begins_B]
    order_N = np.arange(len(firsts)) - begins_B[batch_N]
    last_N = layer_N == num_layers - 1
    wrong_N = (layer_N != order_N) | ((tokens_N != size_B[batch_N]) & ~(last_N & (tokens_N == 1))) | (tokens_N < 1)
    # a single token without its last layer is no part of a prompt but a gap in the file
    shortest_B = np.where(size_B > 1, num_layers - 1, num_layers)
    wrong_B = (layers_B < shortest_B) | (np.bincount(batch_N, wrong_N) > 0)
    batches = len(size_B)
    if log.may_be_cut and batches > 1 and (wrong_B[-1] or layers_B[-1] < num_layers):
        batches -= 1
    if wrong_B[:batches].any():
        batch = int(np.argmax(wrong_B))
        counts = tokens_N[batch_N == batch]
        raise InputError(
            f"{log.at(firsts[begins_B[batch]])}: the batch that begins here has {layers_B[batch]} layers of "
            f"{counts.min()} to {counts.max()} tokens; expected each of the {num_layers} layers with experts in order, "
            "with the same tokens"
        )
    kept = batch_N < batches
    tokens_N, batch_N, last_N, layer_N = tokens_N[kept], batch_N[kept], last_N[kept], layer_N[kept]
    size_B = size_B[:batches]
    complete_B = layers_B[:batches] == num_layers
    alone_N = last_N & (tokens_N < size_B[batch_N])
    start_N = (np.cumsum(size_B) - size_B)[batch_N] + np.where(alone_N, size_B[batch_N] - 1, 0)
    accesses = int(tokens_N.sum())
    token_A = np.repeat(start_N - (np.cumsum(tokens_N) - tokens_N), tokens_N) + np.arange(accesses)
    alone_B = np.bincount(batch_N, alone_N, batches) > 0
    records = firsts[begins_B][:batches]
    return _Runs(records, size_B, complete_B, alone_B, np.repeat(layer_N, tokens_N), token_A, accesses)


def _prompts(log: Passes, runs: _Runs, shape: TraceMetadata) -> list[Routed]:
    tokens = int(runs.size_B.sum())
    experts_TLK = np.full((tokens, shape.num_layers, shape.top_k), -1, np.int32)
    place = runs.token_A, runs.layer_A
    experts_TLK[place] = log.experts_AK[: runs.accesses]
    weights_TLK = None
    if log.weights_AK is not None:
        weights_TLK = np.zeros(experts_TLK.shape, np.float16)
        weights_TLK[place] = log.weights_AK[: runs.accesses]
    hidden_TLD = None
    if log.hidden_AD is not None:
        hidden_TLD = np.full((*experts_TLK.shape[:2], log.hidden_AD.shape[1]), np.nan, np.float16)
        hidden_TLD[place] = log.hidden_AD[: runs.accesses]
    # a step ends with the batch that has the last layer
    step_B = np.concatenate([[0], np.cumsum(runs.complete_B)[:-1]])
    first_B = np.flatnonzero(np.concatenate([[True], np.diff(step_B) > 0]))
    if not runs.complete_B[-1]:
        record = runs.record_B[first_B[-1]]
        raise InputError(f"{log.at(record)}: no rows of the last layer for the prompt that begins here")
    ends_S = np.cumsum(np.bincount(step_B, runs.size_B).astype(np.int64))
    left_out = np.flatnonzero(experts_TLK[:, -1, 0] < 0)
    experts_TLK[left_out, -1] = experts_TLK[ends_S[np.searchsorted(ends_S, left_out, "right")] - 1, -1]
    size_S = np.diff(ends_S, prepend=0)
    record_S = runs.record_B[first_B]
    prefill_S = size_S > 1 if log.prefill_R is None else log.prefill_R[record_S]
    if log.one_prompt:
        prefill_S[0] = True
    begins_S = np.concatenate([[True], prefill_S[1:] & ~prefill_S[:-1]])
    if not log.unmarked:
        cut_S = np.bincount(step_B, runs.alone_B | ~runs.complete_B) > 0
        begins_S |= _certain_begins(log, prefill_S, cut_S, record_S, size_S)
    if log.starts_R is not None:
        begins_S |= log.starts_R[record_S]
    if log.unmarked:
        begins_S[1:] = False
    cuts = np.flatnonzero(begins_S)
    ends = [*ends_S[cuts[1:] - 1].tolist(), tokens]
    prefills = np.add.reduceat(np.where(prefill_S, size_S, 0), cuts).tolist()
    starts = [0, *ends[:-1]]
    return [
        Routed(
            experts_TLK[start:end],
            None if weights_TLK is None else weights_TLK[start:end],
            None if log.unmarked else prefill,
            hidden_TLD=None if hidden_TLD is None else hidden_TLD[start:end],
        )
        for start, end, prefill in zip(starts, ends, prefills, strict=True)
    ]


def _certain_begins(log: Passes, prefill_S: Flags, cut_S: Flags, record_S: Integers, size_S: Integers) -> Flags:
    """Steps of prefill after one that ended its prompt. Refuses steps that may be another prompt's or not.

    A step whose last layer has one token of several is the end of a prompt. Otherwise several tokens after decoded ones
    may be a speculative block, and several after several the same prompt's, longer than a ubatch.
    """
    after_decode_S = np.concatenate([[False], prefill_S[1:] & ~prefill_S[:-1]])
    after_prefill_S = np.concatenate([[False], prefill_S[1:] & prefill_S[:-1]])
    doubtful_S = after_decode_S if log.one_prompt else after_decode_S & ~cut_S
    if log.prefill_R is None and doubtful_S.any():
        step = int(np.argmax(doubtful_S))
        raise InputError(
            f"{log.at(record_S[step])}: a batch of {size_S[step]} tokens after decoded ones: does a second prompt "
            "begin here? Split the file at this row; speculative decoding cannot be read"
        )
    ended_S = np.concatenate([[False], cut_S[:-1]])
    if not log.one_prompt and (after_prefill_S & ~ended_S).any():
        step = int(np.argmax(after_prefill_S & ~ended_S))
        raise InputError(
            f"{log.at(record_S[step])}: a second batch of several tokens: the same prompt's, or another's? If all are "
            "one prompt's, give its length by --prefill-tokens; else split the file at this row"
        )
    return np.zeros_like(ended_S) if log.one_prompt else np.asarray(after_prefill_S & ended_S)
