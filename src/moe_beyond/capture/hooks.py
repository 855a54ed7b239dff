"""Reads a router's decisions and hidden states while a model runs: hooks on the modules that `discovery` finds.

Shape suffixes: B prompts of a batch, C columns of the padded batch (prompt and decoded tokens), L MoE layers, Y those
of which hidden states are kept, K experts per token, D hidden size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from moe_beyond.capture.discovery import decoder_layer
from moe_beyond.errors import InputError

if TYPE_CHECKING:
    from types import TracebackType

    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    from moe_beyond.capture.discovery import MoELayer

Kept = Literal["none", "gates", "all"]
"""Hidden states to keep: none, what the gates read, or also what decoder layers and the output head read."""
_HALF_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Routing:
    """What the routers decided for a batch, experts in falling order of weight.

    Attributes:
        experts_BCLK: Expert ids, int32.
        weights_BCLK: Combine weights that the experts' outputs were multiplied with, float32.
        gate_inputs_BCYD: Hidden states that entered the gates, float16, or None.
        layer_inputs_BCYD: Those that entered the decoder layers, float16, or None.
        final_states_BCD: Those that the output head reads, float16, or None.
    """

    experts_BCLK: torch.Tensor
    weights_BCLK: torch.Tensor
    gate_inputs_BCYD: torch.Tensor | None = None
    layer_inputs_BCYD: torch.Tensor | None = None
    final_states_BCD: torch.Tensor | None = None


class RoutingRecorder:
    """Context manager that records every call of the experts modules; `take` returns the records."""

    def __init__(
        self,
        layers: list[MoELayer],
        hidden: Kept = "none",
        hidden_layers: Sequence[int] | None = None,
        model: PreTrainedModel | None = None,
    ) -> None:
        """Hooks come with `with`.

        Args:
            layers: Layers to read.
            hidden: Hidden states to keep.
            hidden_layers: Indices among `layers` of those whose hidden states are kept; None: of all.
            model: That has the layers; needed for all hidden states.
        """
        self.layers = layers
        self.hidden = hidden
        self.hidden_layers = tuple(range(len(layers)) if hidden_layers is None else hidden_layers)
        self._model = model
        # by what was recorded and where
        self._calls: defaultdict[tuple[str, int], list[torch.Tensor]] = defaultdict(list)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for index, layer in enumerate(self.layers):
            if layer.router is None:
                handle = layer.experts.register_forward_pre_hook(partial(self._on_experts, index), with_kwargs=True)
            else:
                handle = layer.router.register_forward_hook(partial(self._on_router, index))
            self._handles.append(handle)
        if self.hidden == "all":
            assert self._model is not None  # noqa: S101 - what the signature asks for
            for index in self.hidden_layers:
                decoder = decoder_layer(self._model, self.layers[index])
                hook = partial(self._on_decoder, index)
                self._handles.append(decoder.register_forward_pre_hook(hook, with_kwargs=True))
            # not the head: it may be given the last position of a prefill alone
            self._handles.append(self._model.base_model.register_forward_hook(self._on_model))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._calls.clear()

    def take(self, num_prompts: int) -> Routing:
        """Everything recorded since the last call, in the order of the columns; clears it.

        Raises:
            InputError: The layers saw unequal numbers of tokens, or no whole number of tokens a prompt.
        """
        calls = dict(self._calls)
        self._calls.clear()
        every = range(len(self.layers))
        rows = [sum(map(len, calls.get(("experts", index), []))) for index in every]
        if len(set(rows)) != 1 or rows[0] == 0:
            numbers = [layer.number for layer in self.layers]
            raise InputError(f"layers {numbers} routed {rows} tokens; capture needs every layer to see every token")

        def columns(what: str, index: int) -> torch.Tensor:
            """All that was recorded there, an axis of prompts and one of columns ahead."""
            found = calls.pop((what, index), [])
            if (seen := sum(map(len, found))) != rows[0]:
                raise InputError(
                    f"{what} of {seen} tokens, the experts have seen {rows[0]}: these hidden states cannot be "
                    'recorded; set extract.hidden_states to "gates" or "none"'
                )
            return torch.cat([_by_prompt(part, num_prompts) for part in found], dim=1).cpu()

        def stacked(what: str) -> torch.Tensor:
            return torch.stack([columns(what, index) for index in self.hidden_layers], 2)

        ids = [columns("experts", index) for index in every]
        widths = {ids_BCK.shape[-1] for ids_BCK in ids}
        if len(widths) > 1:
            raise InputError(f"layers choose {sorted(widths)} experts per token; a trace needs one top-k for all")
        weights = [columns("weights", index) for index in every]
        experts_BCLK, weights_BCLK = by_falling_weight(torch.stack(ids, 2), torch.stack(weights, 2))
        if self.hidden == "none":
            return Routing(experts_BCLK, weights_BCLK)
        gates_BCYD = stacked("gate inputs")
        if self.hidden == "gates":
            return Routing(experts_BCLK, weights_BCLK, gates_BCYD)
        inputs_BCYD, final_BCD = stacked("layer inputs"), columns("final states", 0)
        if not gates_BCYD.shape[-1] == inputs_BCYD.shape[-1] == final_BCD.shape[-1]:
            raise InputError(
                f"gates read {gates_BCYD.shape[-1]} values, decoder layers {inputs_BCYD.shape[-1]}, the output head "
                f"{final_BCD.shape[-1]}; set extract.hidden_states to gates"
            )
        return Routing(experts_BCLK, weights_BCLK, gates_BCYD, inputs_BCYD, final_BCD)

    def _on_experts(self, index: int, _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("hidden_states", "top_k_index", "top_k_weights")[len(args) :]
        self._record(index, *[*args, *(kwargs[name] for name in names)][:3])

    def _on_router(self, index: int, _module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._record(index, args[0], *_choice(output, self.layers[index].name))

    def _record(self, index: int, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> None:
        # copies: these tensors are views of live activations
        self._calls["experts", index].append(ids.detach().flatten(0, -2).to(torch.int32, copy=True))
        self._calls["weights", index].append(weights.detach().flatten(0, -2).to(torch.float32, copy=True))
        if self.hidden != "none" and index in self.hidden_layers:
            self._keep("gate inputs", index, hidden)

    def _on_decoder(self, index: int, _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._keep("layer inputs", index, args[0] if args else kwargs["hidden_states"])

    def _on_model(self, _module: torch.nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
        if isinstance(states, torch.Tensor):
            self._keep("final states", 0, states)

    def _keep(self, what: str, index: int, hidden: torch.Tensor) -> None:
        values = hidden.detach().flatten(0, -2)
        if values.dtype != torch.float16:
            values = values.clamp(-_HALF_MAX, _HALF_MAX)
        self._calls[what, index].append(values.to(torch.float16, copy=True))


def by_falling_weight(ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Order experts by falling weight along the last axis, equal weights by id.

    Some routers choose with an unsorted top-k, so the order in which they list experts means nothing.
    """
    by_id = ids.argsort(dim=-1, stable=True)
    ids, weights = ids.gather(-1, by_id), weights.gather(-1, by_id)
    by_weight = weights.argsort(dim=-1, descending=True, stable=True)
    return ids.gather(-1, by_weight), weights.gather(-1, by_weight)


def _choice(output: Any, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert ids and weights among what a router returns: an integer and a float tensor of one shape."""
    tensors = [part for part in output if isinstance(part, torch.Tensor)] if isinstance(output, tuple | list) else []
    for ids in tensors:
        for weights in tensors:
            if not ids.is_floating_point() and weights.is_floating_point() and ids.shape == weights.shape:
                return ids, weights
    raise InputError(f"the router beside {name} returns no expert ids with weights; this model cannot be traced")


def _by_prompt(rows: torch.Tensor, num_prompts: int) -> torch.Tensor:
    if len(rows) % num_prompts:
        raise InputError(f"a layer routed {len(rows)} tokens at once for {num_prompts} prompts; expected a multiple")
    return rows.reshape(num_prompts, -1, rows.shape[-1])
