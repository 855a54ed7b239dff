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


class _Called(Exception):  # noqa: N818 - no error: the router has chosen, and nothing more is wanted
    """Ends a forward where it calls an experts module; holds ids and weights."""


def called_with(run: Callable[[], Any], experts: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert ids and combine weights [T, K] with which `run` calls an experts module, which then does not run.

    Raises:
        InputError: It does not call it.
    """

    def before_experts(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Called([*args, *kwargs.values()][1:3])

    handle = experts.register_forward_pre_hook(before_experts, with_kwargs=True)
    try:
        with torch.inference_mode():
            run()
    except _Called as called:
        ids_TK, weights_TK = called.args[0]
        return ids_TK, weights_TK
    finally:
        handle.remove()
    raise InputError(f"{type(experts).__name__}: is not called by its layer; this model cannot be served from a store")


def block_of(model: nn.Module, layer: MoELayer) -> nn.Module:
    """The module that holds a layer's router and experts."""
    return model.get_submodule(layer.name.rpartition(".")[0])


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
    """The routers of a model's MoE layers, run apart from the model's own pass."""

    def __init__(self, model: nn.Module, layers: list[MoELayer]) -> None:
        """Of all MoE layers of `model`."""
        self._blocks = [(block_of(model, layer), layer.experts) for layer in layers]
        self._num = layers[0].num_experts

    def choice(self, hidden_TH: torch.Tensor, layer: int, change: Callable[[F32], F32] | None = None) -> Choice:
        """What the router of a layer (index) gives for hidden states, in its own order.

        Args:
            hidden_TH: What it reads.
            layer: Index of the MoE layer.
            change: Replaces its logits, float32 [T, E], while it chooses; the weights are those that it gives to the
                chosen experts from its own logits. None: they stay.

        Raises:
            InputError: As `called_with`; or it is not plain where its logits or its top-k are.
        """
        ids, weights = self._run(hidden_TH, layer, None if change is None else _Overridden(self._num, change=change))
        if change is not None:
            _, weights = self._run(hidden_TH, layer, _Overridden(self._num, ids_TK=ids.long()))
        return Choice(ids.long().cpu().numpy(), weights.float().cpu().numpy())

    def _run(
        self, hidden_TH: torch.Tensor, layer: int, overridden: _Overridden | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        block, experts = self._blocks[layer]
        with overridden or nullcontext():
            chosen = called_with(lambda: block(hidden_TH[None]), experts)
        if overridden is not None and overridden.found != 1:
            raise InputError(
                f"MoE layer {layer}: its router has not one linear map to {self._num} experts and one top-k, so its "
                "choice cannot be changed; use a policy that leaves it alone"
            )
        return chosen

    def experts(self, layer: int, hidden_TH: torch.Tensor) -> I32:
        """The experts that it chooses for one token, in falling order of weight, int32 [K]."""
        chosen = self.choice(hidden_TH, layer)
        ordered, _ = by_falling_weight(*map(torch.from_numpy, chosen))
        return ordered[0].numpy().astype(np.int32)
