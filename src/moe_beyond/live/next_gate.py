"""What routers would choose: a later layer's for what an earlier one's has read, or a layer's own from other logits.

Each architecture chooses in its own way (groups, biases, renormalised weights), so the layer's whole block runs, up to
the point at which it calls its experts.

Shape suffixes: T tokens, K experts per token, H hidden size, E experts in a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from moe_beyond.capture.hooks import by_falling_weight
from moe_beyond.errors import InputError
from moe_beyond.simulator.engine.online import Choice

if TYPE_CHECKING:
    from torch import nn

    from moe_beyond.capture.discovery import MoELayer
    from moe_beyond.simulator.jit import F32, I32


_TOP_K = (torch.topk, torch.Tensor.topk)


class _Chosen(Exception):  # noqa: N818 - no error: the block has chosen, and nothing more is wanted of it
    """Ends a block's forward where it calls its experts."""


class _Overridden(TorchFunctionMode):
    """Stands in for a step of a router: what its linear map gives (`change`), or what its top-k chooses (`ids_TK`).

    Routers are modules of many kinds, but these two steps are the same functions in all. `found` counts such steps.
    """

    def __init__(
        self, num_experts: int, *, change: Callable[[F32], F32] | None = None, ids_TK: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.found = 0
        self._num_experts, self._change, self._ids_TK = num_experts, change, ids_TK

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._change is not None and func is functional.linear and out.shape[-1] == self._num_experts:
            self.found += 1
            logits_TE = out.float().cpu().numpy().reshape(-1, self._num_experts)
            return torch.from_numpy(self._change(logits_TE)).to(out).view(out.shape)
        # a top-k of groups has three axes
        if self._ids_TK is not None and func in _TOP_K and args[0].shape[1:] == (self._num_experts,):
            self.found += 1
            return torch.return_types.topk((args[0].gather(-1, self._ids_TK), self._ids_TK))
        return out


class NextGate:
    """Asks routers.

    Attributes:
        asks: Whether a block runs that is only asked; its experts module then calls `answer`.
    """

    def __init__(self, blocks: list[nn.Module], num_experts: int) -> None:
        """Ask the blocks that hold router and experts, one a MoE layer."""
        self.asks = False
        self._blocks, self._num = blocks, num_experts
        self._chosen: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def of(cls, model: nn.Module, layers: list[MoELayer]) -> NextGate:
        """Of a model's MoE layers."""
        blocks = [model.get_submodule(layer.name.rpartition(".")[0]) for layer in layers]
        return cls(blocks, layers[0].num_experts)

    def choice(self, hidden_TH: torch.Tensor, layer: int, change: Callable[[F32], F32] | None = None) -> Choice:
        """What the router of a layer (index) gives for hidden states, in its own order.

        Args:
            hidden_TH: What it reads.
            layer: Index of the MoE layer.
            change: Replaces its logits, float32 [T, E], while it chooses; the weights are those that it gives to the
                chosen experts from its own logits. None: they stay.

        Raises:
            InputError: Its block cannot be run by itself, or it is not plain where its logits or its top-k are.
        """
        ids, weights = self._run(hidden_TH, layer, None if change is None else _Overridden(self._num, change=change))
        if change is not None:
            _, weights = self._run(hidden_TH, layer, _Overridden(self._num, ids_TK=ids.long()))
        return Choice(ids.long().cpu().numpy(), weights.float().cpu().numpy())

    def _run(
        self, hidden_TH: torch.Tensor, layer: int, overridden: _Overridden | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.asks, self._chosen = True, None
        try:
            with overridden or nullcontext():
                self._blocks[layer](hidden_TH[None])
        except _Chosen:
            pass
        finally:
            self.asks = False
        if self._chosen is None:
            raise InputError(f"MoE layer {layer}: its router cannot be asked apart from its layer; use another policy")
        if overridden is not None and overridden.found != 1:
            raise InputError(
                f"MoE layer {layer}: its router has not one linear map to {self._num} experts and one top-k, so its "
                "choice cannot be changed; use a policy that leaves it alone"
            )
        return self._chosen

    def experts(self, layer: int, hidden_TH: torch.Tensor) -> I32:
        """The experts that it chooses for one token, in falling order of weight, int32 [K]."""
        chosen = self.choice(hidden_TH, layer)
        ordered, _ = by_falling_weight(*map(torch.from_numpy, chosen))
        return ordered[0].numpy().astype(np.int32)

    def answer(self, ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> None:
        """Called in place of the experts."""
        self._chosen = ids_TK, weights_TK
        raise _Chosen
