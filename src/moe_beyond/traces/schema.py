"""The vocabulary of traces: what a trace holds, and the checks that make it one.

Shape suffixes: T tokens (all prompts, one after another), L Mixture-of-Experts layers, K experts per token (top-k),
E routed experts in a layer, P prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

from moe_beyond.errors import InputError
from moe_beyond.traces.columns import Column, forget, slices
from moe_beyond.traces.hidden import HiddenStates, joined
from moe_beyond.traces.lost_routing import refuse_lost_routing

SCHEMA_VERSION = 1
"""Version of the published form; a reader refuses a newer one."""

ExpertIds = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Decoding = Literal["sampled", "greedy", "teacher-forced", "unknown"]


class TraceMetadata(BaseModel):
    """What is true of a whole trace: the model's shape and where the trace comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    model_id: str = Field(min_length=1)
    model_revision: str = ""
    layer_numbers: tuple[int, ...] = Field(min_length=1)
    """Numbers of the MoE layers in the model, rising; dense layers are not listed."""
    num_experts: int = Field(ge=2, le=65536)
    top_k: int = Field(ge=1)
    expert_bytes: tuple[Annotated[int, Field(gt=0, le=2**40)], ...]
    """Bytes that one expert of each MoE layer occupies in the precision that was traced; one number a layer."""
    dense_bytes: tuple[NonNegativeInt, ...] | None = Field(default=None, exclude_if=lambda given: given is None)
    """Bytes that every token reads in each MoE layer beside the experts, one number a layer; None: not known."""
    decoding: Decoding = "unknown"
    """How decode tokens were chosen; `teacher-forced` where a given text was replayed."""
    source: str
    licence: str

    @model_validator(mode="after")
    def _shape_is_consistent(self) -> Self:
        if list(self.layer_numbers) != sorted(set(self.layer_numbers)):
            raise ValueError("layer_numbers must rise without repetition")
        if len(self.expert_bytes) != len(self.layer_numbers):
            raise ValueError("expert_bytes needs one number for each MoE layer")
        if self.dense_bytes is not None and len(self.dense_bytes) != len(self.layer_numbers):
            raise ValueError("dense_bytes needs one number for each MoE layer")
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k ({self.top_k}) exceeds num_experts ({self.num_experts})")
        return self

    @property
    def num_layers(self) -> int:
        """Number of Mixture-of-Experts layers, L."""
        return len(self.layer_numbers)

    @property
    def num_model_experts(self) -> int:
        """Routed experts of the whole model, L * E."""
        return self.num_layers * self.num_experts

    @property
    def token_cycle(self) -> int:
        """Experts that one decode token uses, L * K.

        A global LRU of at most (L - 1) * K never hits: the other layers use that many between two uses of a layer.
        """
        return self.num_layers * self.top_k

    def require_same_model(self, other: TraceMetadata, what: str) -> None:
        """Raise InputError unless `other` has the same layers, experts and top-k. `what` names `other`."""
        for field in ("layer_numbers", "num_experts", "top_k"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                raise InputError(f"{what}: {field} is {theirs}, {self.model_id} has {mine}; use traces of one model")


def expert_dtype(num_experts: int) -> type[np.uint8] | type[np.uint16]:
    """The smallest dtype that holds every expert id."""
    return np.uint8 if num_experts <= 256 else np.uint16


@dataclass(frozen=True)
class TokenTexts:
    """Token strings, dictionary-encoded: token t reads `vocabulary[codes_T[t]]`."""

    codes_T: npt.NDArray[np.int32]
    vocabulary: tuple[str, ...]

    @classmethod
    def encode(cls, texts: list[str]) -> TokenTexts:
        """Encode strings; the vocabulary is in order of first appearance."""
        index: dict[str, int] = {}
        codes = np.fromiter((index.setdefault(text, len(index)) for text in texts), np.int32, len(texts))
        return cls(codes, tuple(index))

    def decode(self) -> list[str]:
        """The strings again, one a token."""
        return [self.vocabulary[code] for code in self.codes_T.tolist()]


@dataclass(frozen=True)
class Trace:
    """Routing of many prompts of one model; token t of the trace lies in the prompt whose offsets enclose it.

    Attributes:
        metadata: The model's shape and the trace's origin.
        prompt_ids: P distinct names.
        domains: P names of the data set or domain that each prompt comes from.
        held_out_P: bool; True where the prompt's domain is kept for testing only.
        prompt_offsets: int64 [P+1]; prompt p has tokens `prompt_offsets[p]:prompt_offsets[p+1]`.
        num_prefill_P: int32; how many of a prompt's first tokens were prefill, the others were decoded one by one.
        experts_TLK: expert ids in the router's order, uint8 or (above 256 experts) uint16.
        weights_TLK: combine weights that belong to `experts_TLK`, float16, or None.
        token_ids_T: ids of the model's tokenizer, int32, or None.
        token_texts: token strings, or None (not captured, or dropped for privacy).
        predicted_TLK: experts that a published predictor named for this token, same layout, or None.
        hidden: hidden states of some of its tokens, or None.
    """

    metadata: TraceMetadata
    prompt_ids: tuple[str, ...]
    domains: tuple[str, ...]
    held_out_P: npt.NDArray[np.bool_]
    prompt_offsets: npt.NDArray[np.int64]
    num_prefill_P: npt.NDArray[np.int32]
    experts_TLK: ExpertIds
    weights_TLK: npt.NDArray[np.float16] | None = None
    token_ids_T: npt.NDArray[np.int32] | None = None
    token_texts: TokenTexts | None = None
    predicted_TLK: ExpertIds | None = None
    hidden: HiddenStates | None = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens, T."""
        return int(self.prompt_offsets[-1])

    @property
    def num_prompts(self) -> int:
        """Number of prompts, P."""
        return len(self.prompt_ids)

    @cached_property
    def positions_T(self) -> npt.NDArray[np.int64]:
        """Position of each token in its prompt, int64, from 0."""
        lengths = np.diff(self.prompt_offsets)
        return np.arange(self.num_tokens) - np.repeat(self.prompt_offsets[:-1], lengths)

    @cached_property
    def is_prefill_T(self) -> npt.NDArray[np.bool_]:
        """True for prefill tokens."""
        lengths = np.diff(self.prompt_offsets)
        return np.asarray(self.positions_T < np.repeat(self.num_prefill_P, lengths))

    def select(self, prompts: npt.NDArray[np.int64]) -> Trace:
        """The prompts with these indices, in this order, as a trace of its own."""
        starts, ends = self.prompt_offsets[prompts], self.prompt_offsets[prompts + 1]
        tokens = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)] or [np.arange(0)])
        return self._take(prompts, tokens, ends - starts, self.num_prefill_P[prompts])

    def beginning(self, num_prompts: int, decoded: int) -> Trace:
        """The first prompts, of each its prefill and at most so many decoded tokens, as a trace of its own."""
        prompts = np.arange(min(num_prompts, self.num_prompts))
        prefill_P = self.num_prefill_P[prompts]
        lengths = np.minimum(np.diff(self.prompt_offsets)[prompts], prefill_P.astype(np.int64) + decoded)
        tokens = np.repeat(self.prompt_offsets[prompts], lengths) + np.arange(lengths.sum())
        tokens -= np.repeat(offsets_of(lengths)[:-1], lengths)
        return self._take(prompts, tokens, lengths, prefill_P)

    def decode_only(self) -> Trace:
        """The decoded tokens alone, of the prompts that have any."""
        decoded = np.diff(self.prompt_offsets) - self.num_prefill_P.astype(np.int64)
        prompts = np.nonzero(decoded)[0]
        return self._take(
            prompts, np.nonzero(~self.is_prefill_T)[0], decoded[prompts], np.zeros(len(prompts), np.int32)
        )

    def _take(
        self,
        prompts: npt.NDArray[np.int64],
        tokens: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        num_prefill_P: npt.NDArray[np.int32],
    ) -> Trace:
        texts = self.token_texts
        columns = {name: getattr(self, name) for name in _TOKEN_COLUMNS}
        return replace(
            self,
            prompt_ids=tuple(self.prompt_ids[p] for p in prompts),
            domains=tuple(self.domains[p] for p in prompts),
            held_out_P=self.held_out_P[prompts],
            prompt_offsets=offsets_of(lengths),
            num_prefill_P=num_prefill_P,
            token_texts=None if texts is None else TokenTexts(self._rows(texts.codes_T, tokens), texts.vocabulary),
            hidden=None if self.hidden is None else self.hidden.take(tokens),
            **{name: self._rows(column, tokens) for name, column in columns.items() if column is not None},
        )

    def _rows(self, column: npt.NDArray[Any], tokens: npt.NDArray[np.int64]) -> Any:
        """The values of these tokens."""
        rows = Column(column.dtype)
        for part in slices(len(tokens), self.metadata.token_cycle) if len(tokens) else [slice(0, 0)]:
            rows.append(column[tokens[part]])
            forget(column)
        return rows.array()

    def layer_TK(self, layer: int) -> ExpertIds:
        """The experts of one layer, by its index, as an array of its own."""
        experts_TK: ExpertIds = np.empty((self.num_tokens, self.metadata.top_k), self.experts_TLK.dtype)
        for tokens, part_TLK in self.parts():
            experts_TK[tokens] = part_TLK[:, layer]
        return experts_TK

    def forget(self) -> None:
        """Give back the memory of mapped columns that were read."""
        forget(*(getattr(self, name) for name in _TOKEN_COLUMNS))

    def parts(self) -> Iterator[tuple[slice, ExpertIds]]:
        """Tokens and their experts, as many at once as `columns` allows; pages of the former part are given back."""
        for tokens in slices(self.num_tokens, self.metadata.token_cycle):
            yield tokens, self.experts_TLK[tokens]
            forget(self.experts_TLK)


_TOKEN_COLUMNS = ("experts_TLK", "weights_TLK", "token_ids_T", "predicted_TLK")


def offsets_of(lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Offsets of prompts of these lengths, int64 [P+1]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@dataclass(frozen=True)
class RoutedPrompt:
    """One prompt on its way into a trace; columns as in `Trace`, integers and floats of any width.

    Attributes:
        prompt_id: Its name, once in a trace.
        domain: Data set or domain that it comes from.
        num_prefill: How many of its first tokens were prefill.
        experts_TLK: Ids that the model has.
        weights_TLK: Combine weights, or None.
        token_ids_T: Ids of the tokenizer, or None.
        token_texts: Token strings, or None.
        predicted_TLK: Experts that a published predictor named, or None.
        held_out: Whether its domain is kept for testing only.
        hidden: Hidden states of its tokens, or None.
    """

    prompt_id: str
    domain: str
    num_prefill: int
    experts_TLK: npt.NDArray[np.integer[Any]]
    weights_TLK: npt.NDArray[np.floating[Any]] | None = None
    token_ids_T: npt.NDArray[np.integer[Any]] | None = None
    token_texts: Sequence[str] | None = None
    predicted_TLK: npt.NDArray[np.integer[Any]] | None = None
    held_out: bool = False
    hidden: HiddenStates | None = None


def trace_of(metadata: TraceMetadata, prompts: Iterable[RoutedPrompt]) -> Trace:
    """Prompts of one model as a trace, in order; an optional column is there if every prompt has it. Checks nothing.

    Prompts are taken one by one: of an iterator none but the present one is kept.
    """
    joined = _Joined(metadata)
    for prompt in prompts:
        texts = None if prompt.token_texts is None else TokenTexts.encode(list(prompt.token_texts))
        joined.append_columns(prompt, texts)
        joined.append_prompts(
            [prompt.prompt_id], [prompt.domain], [prompt.held_out], [len(prompt.experts_TLK)], [prompt.num_prefill]
        )
    return joined.trace()


def concatenate(traces: Iterable[Trace]) -> Trace:
    """Several traces of one model as one, prompts in the given order.

    An optional column survives only where every trace has it. The metadata is the first trace's.

    Raises:
        InputError: There is none, or the traces are of different models.
    """
    joined: _Joined | None = None
    for trace in traces:
        joined = joined or _Joined(trace.metadata)
        joined.metadata.require_same_model(trace.metadata, trace.metadata.source)
        joined.append_columns(trace, trace.token_texts)
        lengths_P = np.diff(trace.prompt_offsets).tolist()
        joined.append_prompts(
            trace.prompt_ids, trace.domains, trace.held_out_P.tolist(), lengths_P, trace.num_prefill_P.tolist()
        )
    if joined is None:
        raise InputError("no prompts: the list is empty; give at least one prompt")
    return joined.trace()


class _Joined:
    """A trace on its way: prompts and their columns are appended."""

    def __init__(self, metadata: TraceMetadata) -> None:
        self.metadata = metadata
        self._prompts: list[list[Any]] = [[], [], [], [], []]
        ids = expert_dtype(metadata.num_experts)
        dtypes = {"experts_TLK": ids, "weights_TLK": np.float16, "token_ids_T": np.int32, "predicted_TLK": ids}
        self._columns = {name: Column(dtype) for name, dtype in dtypes.items()}
        self._codes: Column | None = Column(np.int32)
        self._vocabulary: dict[str, int] = {}
        self._hidden: list[HiddenStates | None] = []

    def append_prompts(self, *columns: Iterable[Any]) -> None:
        """Ids, domains, whether held out, lengths and prefills."""
        for column, values in zip(self._prompts, columns, strict=True):
            column.extend(values)

    def append_columns(self, part: Trace | RoutedPrompt, texts: TokenTexts | None) -> None:
        for name in list(self._columns):
            values = getattr(part, name)
            if values is None:
                del self._columns[name]
            else:
                self._columns[name].append(values)
        self._hidden.append(part.hidden)
        if texts is None:
            self._codes = None
        if texts is not None and self._codes is not None:
            index = self._vocabulary
            recode = np.array([index.setdefault(word, len(index)) for word in texts.vocabulary], np.int32)
            self._codes.append(recode[texts.codes_T] if len(recode) else texts.codes_T)

    def trace(self) -> Trace:
        prompt_ids, domains, held_out, lengths, prefills = self._prompts
        columns: dict[str, Any] = {name: column.array() for name, column in self._columns.items()}
        return Trace(
            metadata=self.metadata,
            prompt_ids=tuple(prompt_ids),
            domains=tuple(domains),
            held_out_P=np.array(held_out, np.bool_),
            prompt_offsets=offsets_of(lengths),
            num_prefill_P=np.array(prefills, np.int32),
            token_texts=None if self._codes is None else TokenTexts(self._codes.array(), tuple(self._vocabulary)),
            hidden=joined(self._hidden),
            **columns,
        )


def validate(trace: Trace, where: str) -> Trace:
    """Return `trace` unchanged if it keeps every rule of the schema.

    Args:
        trace: What was read or captured.
        where: File or source to name in a message.

    Raises:
        InputError: The first rule that is broken, with prompt, position and layer.
    """
    _check_prompts(trace, where)
    meta = trace.metadata
    shape = (trace.num_tokens, meta.num_layers, meta.top_k)
    for field in ("experts_TLK", "weights_TLK", "predicted_TLK"):
        column = getattr(trace, field)
        if column is not None and column.shape != shape:
            raise InputError(f"{where}: {field} has shape {column.shape}, expected tokens x layers x top_k = {shape}")
    texts = None if trace.token_texts is None else trace.token_texts.codes_T
    for name, column in (("token_ids", trace.token_ids_T), ("token_texts", texts)):
        if column is not None and column.shape != shape[:1]:
            raise InputError(f"{where}: {len(column)} {name} for {trace.num_tokens} tokens; expected one a token")
    _check_experts(trace, where)
    _check_token_columns(trace, where)
    return validate_hidden(trace, where)


def _check_prompts(trace: Trace, where: str) -> None:
    if trace.num_prompts == 0:
        raise InputError(f"{where}: no prompts; give at least one")
    if len(set(trace.prompt_ids)) != trace.num_prompts:
        name = next(name for name in trace.prompt_ids if trace.prompt_ids.count(name) > 1)
        raise InputError(f"{where}: prompt {name!r} stands there twice; give every prompt its own prompt_id")
    for name in trace.prompt_ids:
        if "\0" in name:
            raise InputError(f"{where}: prompt {name!r} has a zero byte in its name; give it another prompt_id")
    lengths = np.diff(trace.prompt_offsets)
    if (lengths <= 0).any():
        name = trace.prompt_ids[int(np.argmax(lengths <= 0))]
        raise InputError(f"{where}: prompt {name!r} has no tokens; remove it")
    wrong = (trace.num_prefill_P < 0) | (trace.num_prefill_P > lengths)
    if wrong.any():
        prompt = int(np.argmax(wrong))
        raise InputError(
            f"{where}: prompt {trace.prompt_ids[prompt]!r}: num_prefill is {trace.num_prefill_P[prompt]}, expected "
            f"0 to the prompt's length, {lengths[prompt]}"
        )


def _check_experts(trace: Trace, where: str) -> None:
    num_experts = trace.metadata.num_experts
    for field in ("experts_TLK", "predicted_TLK"):
        column = getattr(trace, field)
        found = None if column is None else _first(trace, column, lambda part_TLK: part_TLK >= num_experts)
        if found is not None:
            token, layer, slot = found
            raise InputError(
                f"{where}: {locate(trace, token, layer)}: expert id {column[token, layer, slot]} in {field} is out of "
                f"range, the model has experts 0 to {num_experts - 1}"
            )
    refuse_lost_routing(trace, where)
    found = _first(trace, trace.experts_TLK, _has_repetition_TL)
    if found is not None:
        token, layer = found
        experts_K = trace.experts_TLK[token, layer]
        empty = len(set(experts_K.tolist())) == 1
        raise InputError(
            f"{where}: {locate(trace, token, layer)}: an expert is listed twice in {experts_K.tolist()}; a router "
            f"chooses distinct experts{': here the engine filled nothing in, its routing is lost' if empty else ''}"
        )


def _first(
    trace: Trace, column: npt.NDArray[Any], broken: Callable[[npt.NDArray[Any]], npt.NDArray[np.bool_]]
) -> list[int] | None:
    """Where a rule is first broken, looked for in parts of the tokens; None: nowhere."""
    for tokens in slices(len(column), trace.metadata.token_cycle):
        broken_T = broken(column[tokens])
        forget(column)
        if broken_T.any():
            token, *rest = (int(index[0]) for index in np.nonzero(broken_T))
            return [tokens.start + token, *rest]
    return None


def _has_repetition_TL(experts_TLK: ExpertIds) -> npt.NDArray[np.bool_]:
    """True where a token names an expert twice in a layer."""
    top_k = experts_TLK.shape[2]
    if top_k > 8:
        ordered = np.sort(experts_TLK, axis=2)
        return np.asarray((ordered[:, :, 1:] == ordered[:, :, :-1]).any(axis=2))
    # for a few experts, comparing every pair of whole columns is four times as fast as sorting
    columns_KTL = np.ascontiguousarray(experts_TLK.transpose(2, 0, 1))
    repeated_TL = np.zeros(experts_TLK.shape[:2], np.bool_)
    for a, b in itertools.combinations(range(top_k), 2):
        repeated_TL |= columns_KTL[a] == columns_KTL[b]
    return repeated_TL


def _check_token_columns(trace: Trace, where: str) -> None:
    for text in trace.token_texts.vocabulary if trace.token_texts is not None else ():
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{where}: token string {text!r} is no valid Unicode; replace its lone surrogates")
    if trace.weights_TLK is None:
        return
    found = _first(trace, trace.weights_TLK, lambda part_TLK: ~np.isfinite(part_TLK) | (part_TLK < 0))
    if found is not None:
        token, layer, slot = found
        raise InputError(
            f"{where}: {locate(trace, token, layer)}: combine weight {trace.weights_TLK[token, layer, slot]} is "
            "not a finite number >= 0; correct it or write no weights"
        )


def validate_hidden(trace: Trace, where: str) -> Trace:
    """As `validate`, of the hidden states alone."""
    meta, hidden = trace.metadata, trace.hidden
    if hidden is None:
        return trace
    if len(hidden.rows_T) != trace.num_tokens:
        raise InputError(f"{where}: hidden states of {len(hidden.rows_T)} tokens, the trace has {trace.num_tokens}")
    if not set(hidden.layers) <= set(range(meta.num_layers)):
        raise InputError(f"{where}: hidden states of layers {list(hidden.layers)}, the trace has {meta.num_layers}")
    if hidden.routers is not None and hidden.routers.weights_LED.shape[:2] != (meta.num_layers, meta.num_experts):
        shape = hidden.routers.weights_LED.shape
        raise InputError(
            f"{where}: routers of {shape[0]} layers x {shape[1]} experts, the trace has {meta.num_layers} x "
            f"{meta.num_experts}; write no routers"
        )
    for name in ("gate_inputs_SYD", "layer_inputs_SYD", "final_states_SD"):
        values = getattr(hidden, name)
        for rows in slices(len(values), int(np.prod(values.shape[1:])) or 1) if values is not None else ():
            # all bits of the exponent are set in what is not finite: ten times as fast as isfinite
            bad_S = ((values[rows].view(np.uint16) & 0x7C00) == 0x7C00).reshape(len(values[rows]), -1).any(axis=1)
            forget(values)
            bad_T = np.isin(hidden.rows_T, rows.start + np.flatnonzero(bad_S))
            if bad_T.any():
                place = locate(trace, int(np.argmax(bad_T)), 0).rpartition(",")[0]
                raise InputError(
                    f"{where}: {place}: hidden states in {name} are not finite; leave them out of the trace, or record "
                    "it again"
                )
    return trace


def locate(trace: Trace, token: int, layer: int) -> str:
    """Name a token and a layer as a person would look for them."""
    prompt = int(np.searchsorted(trace.prompt_offsets, token, side="right")) - 1
    position = token - int(trace.prompt_offsets[prompt])
    return f"prompt {trace.prompt_ids[prompt]!r}, position {position}, layer {trace.metadata.layer_numbers[layer]}"


def expert_counts_LE(experts_TLK: ExpertIds, num_experts: int) -> npt.NDArray[np.int64]:
    """How often each expert was chosen, int64 [L, E]."""
    num_layers = experts_TLK.shape[1]
    counts_LE = np.zeros((num_layers, num_experts), np.int64)
    for tokens in slices(len(experts_TLK), experts_TLK[0].size if len(experts_TLK) else 1):
        for layer in range(num_layers):
            counts_LE[layer] += np.bincount(experts_TLK[tokens, layer].reshape(-1), minlength=num_experts)
        forget(experts_TLK)
    return counts_LE
