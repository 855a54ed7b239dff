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


class _Chosen(Exception):  # noqa: N818 - no error: the block has chosen, and nothing more is wanted of it
    """Ends a block's forward where it calls its experts."""


class _ChangedLogits(TorchFunctionMode):
    """Changes what the linear map from hidden states to a value an expert gives; `found` counts such maps."""

    def __init__(self, num_experts: int, change: Callable[[F32], F32]) -> None:
        super().__init__()
        self.found = 0
        self._num_experts, self._change = num_experts, change

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # routers are modules of many kinds; all of them apply their weights [E, H] so
        if func is functional.linear and out.shape[-1] == self._num_experts:
            self.found += 1
            logits_TE = out.float().cpu().numpy().reshape(-1, self._num_experts)
            out = torch.from_numpy(self._change(logits_TE)).to(out).view(out.shape)
        return out


class NextGate:
    """Asks routers.

    Attributes:
        asks: Whether a block runs that is only asked; its experts module then calls `answer`.
    """

    def __init__(self, blocks: list[nn.Module], num_experts: int) -> None:
        """Ask the blocks that hold router and experts, one a MoE layer."""
        self.asks = False
        self._blocks, self._num_experts = blocks, num_experts
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
            change: Replaces its logits, float32 [T, E]; None: they stay.

        Raises:
            InputError: Its block cannot be run by itself, or it is not plain which values are its logits.
        """
        changed = None if change is None else _ChangedLogits(self._num_experts, change)
        self.asks, self._chosen = True, None
        try:
            with changed or nullcontext():
                self._blocks[layer](hidden_TH[None])
        except _Chosen:
            pass
        finally:
            self.asks = False
        if self._chosen is None:
            raise InputError(f"MoE layer {layer}: its router cannot be asked apart from its layer; use another policy")
        if changed is not None and changed.found != 1:
            raise InputError(
                f"MoE layer {layer}: {changed.found} linear maps give a value for each of its {self._num_experts} "
                "experts, so the router's logits cannot be told; use a policy that does not change them"
            )
        ids, weights = self._chosen
        return Choice(ids.long().cpu().numpy(), weights.float().cpu().numpy())

    def experts(self, layer: int, hidden_TH: torch.Tensor) -> I32:
        """The experts that it chooses for one token, in falling order of weight, int32 [K]."""
        chosen = self.choice(hidden_TH, layer)
        ordered, _ = by_falling_weight(*map(torch.from_numpy, chosen))
        return ordered[0].numpy().astype(np.int32)

    def answer(self, ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> None:
        """Called in place of the experts."""
        self._chosen = ids_TK, weights_TK
        raise _Chosen
