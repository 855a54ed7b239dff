"""Reads a router's decisions while a model runs: hooks on the modules that `discovery` finds.

Shape suffixes: B prompts of a batch, C columns of the padded batch (prompt and decoded tokens), L MoE layers,
K experts per token, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch

from moe_beyond.errors import InputError

if TYPE_CHECKING:
    from types import TracebackType

    from torch.utils.hooks import RemovableHandle

    from moe_beyond.capture.discovery import MoELayer


@dataclass(frozen=True)
class Routing:
    """What the routers decided for a batch, experts in falling order of weight.

    Attributes:
        experts_BCLK: Expert ids, int32.
        weights_BCLK: Combine weights that the experts' outputs were multiplied with, float32.
        gate_inputs_BCLH: Hidden states that entered the gates, float16, or None.
    """

    experts_BCLK: torch.Tensor
    weights_BCLK: torch.Tensor
    gate_inputs_BCLH: torch.Tensor | None


@dataclass
class RoutingRecorder:
    """Context manager that records every call of the experts modules; `take` returns the records.

    Attributes:
        layers: Layers to read.
        gate_inputs: Also keep the hidden states.
    """

    layers: list[MoELayer]
    gate_inputs: bool = False
    _calls: list[list[tuple[torch.Tensor, ...]]] = field(default_factory=list)
    _handles: list[RemovableHandle] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._calls = [[] for _ in self.layers]
        for index, layer in enumerate(self.layers):
            if layer.router is None:
                handle = layer.experts.register_forward_pre_hook(partial(self._on_experts, index), with_kwargs=True)
            else:
                handle = layer.router.register_forward_hook(partial(self._on_router, index))
            self._handles.append(handle)
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
        calls, self._calls = self._calls, [[] for _ in self.layers]
        rows = [sum(len(call[0]) for call in layer) for layer in calls]
        if len(set(rows)) != 1 or rows[0] == 0:
            numbers = [layer.number for layer in self.layers]
            raise InputError(f"layers {numbers} routed {rows} tokens; capture needs every layer to see every token")
        columns = [
            [torch.cat([_by_prompt(call[part], num_prompts) for call in layer], dim=1).cpu() for layer in calls]
            for part in range(3 if self.gate_inputs else 2)
        ]
        widths = {ids_BCK.shape[-1] for ids_BCK in columns[0]}
        if len(widths) > 1:
            raise InputError(f"layers choose {sorted(widths)} experts per token; a trace needs one top-k for all")
        experts_BCLK, weights_BCLK = by_falling_weight(torch.stack(columns[0], 2), torch.stack(columns[1], 2))
        return Routing(experts_BCLK, weights_BCLK, torch.stack(columns[2], 2) if self.gate_inputs else None)

    def _on_experts(self, index: int, _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("hidden_states", "top_k_index", "top_k_weights")[len(args) :]
        self._record(index, *[*args, *(kwargs[name] for name in names)][:3])

    def _on_router(self, index: int, _module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._record(index, args[0], *_choice(output, self.layers[index].name))

    def _record(self, index: int, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> None:
        # copies: these tensors are views of live activations
        parts = [(ids, torch.int32), (weights, torch.float32), (hidden, torch.float16)][: 3 if self.gate_inputs else 2]
        self._calls[index].append(tuple(part.detach().flatten(0, -2).to(dtype, copy=True) for part, dtype in parts))


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
