"""Fast memory for experts: slots that the experts modules of all layers share, in place of their own parameters.

An experts module is called with hidden states, expert ids and weights, and picks experts out of parameters [E, ...]. It
is given the pool's [slots, ...] instead, and slots for ids, so that the model's own kernels run as they are.

Shape suffixes: M experts of the model, T tokens of a step, K experts per token, H hidden size, E experts in a layer,
P pairs of a token and one of its experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from moe_beyond.live.store import StoredParameter, aligned_buffer

if TYPE_CHECKING:
    from moe_beyond.capture.discovery import MoELayer
    from moe_beyond.simulator.jit import I64, Bools

NO_SLOT = -1


class ExpertPool:
    """Slots and what lies in them.

    Attributes:
        bytes_SB: uint8 [slots, bytes of a record]; row s is slot s.
        slot_M: int64; the slot of each expert, or NO_SLOT.
        computed: On an accelerator, when the latest computing with slots will have ended.
    """

    def __init__(
        self,
        parameters: Sequence[StoredParameter],
        stride: int,
        num_experts: int,
        num_slots: int,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        """Empty slots for records of `stride` bytes, of a model of `num_experts` experts in all layers."""
        total = num_slots * stride
        on_cpu = torch.device(device).type == "cpu"
        flat = aligned_buffer(total) if on_cpu else torch.empty(total, dtype=torch.uint8, device=device)
        self.bytes_SB = flat.view(num_slots, stride)
        self.computed: torch.cuda.Event | None = None
        self.slot_M: I64 = np.full(num_experts, NO_SLOT)
        self._parameters = tuple(parameters)
        self._free = list(range(num_slots - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Slots that nothing lies in."""
        return len(self._free)

    def take(self, expert: int) -> int:
        """A slot for an expert, its own where it has one."""
        if self.slot_M[expert] == NO_SLOT:
            self.slot_M[expert] = self._free.pop()
        return int(self.slot_M[expert])

    def give_back(self, expert: int) -> None:
        """The expert's slot is free."""
        self._free.append(int(self.slot_M[expert]))
        self.slot_M[expert] = NO_SLOT

    def held_without(self, resident_M: Bools) -> I64:
        """Experts that have a slot and are not among the residents; int64."""
        return np.flatnonzero((self.slot_M != NO_SLOT) & ~resident_M)

    def mark_computed(self) -> None:
        """An event's computing has been given to the accelerator; nothing on a CPU, where it has ended."""
        if self.bytes_SB.is_cuda:
            self.computed = torch.cuda.Event()
            self.computed.record()

    def record(self, slot: int) -> torch.Tensor:
        """The bytes of a slot, uint8 [bytes of a record], aligned for direct reads."""
        return self.bytes_SB[slot]

    def parameters(self) -> dict[str, nn.Parameter]:
        """The slots as an experts module's parameters by name, [slots, ...], without copying."""
        num_slots, found = len(self.bytes_SB), {}
        for parameter in self._parameters:
            column = self.bytes_SB[:, parameter.offset : parameter.offset + parameter.nbytes]
            # of a slot contiguous, from slot to slot a record apart
            values = column.view(parameter.dtype).view(num_slots, *parameter.shape)
            found[parameter.name] = nn.Parameter(values, requires_grad=False)
        return found

    def attach(self, layers: Sequence[MoELayer], run: Callable[..., torch.Tensor]) -> Callable[[], None]:
        """Give all layers the slots for parameters, and let `run` stand before their experts.

        Args:
            layers: The model's MoE layers.
            run: Called with the layer's index, the module's own forward, and what the module is called with.

        Returns:
            What undoes it.
        """
        slots = self.parameters()
        own = [{name: layer.experts.get_parameter(name) for name in slots} for layer in layers]
        counts = [getattr(layer.experts, "num_experts", None) for layer in layers]
        for index, layer in enumerate(layers):
            module: Any = layer.experts
            _set_parameters(module, slots)
            module.num_experts = len(self.bytes_SB)
            module.forward = _before(run, index, module.forward)

        def detach() -> None:
            for layer, parameters, count in zip(layers, own, counts, strict=True):
                module: Any = layer.experts
                del module.__dict__["forward"]
                _set_parameters(module, parameters)
                module.num_experts = count

        return detach


def _set_parameters(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        path, _, last = name.rpartition(".")
        module.get_submodule(path)._parameters[last] = parameter


def _before(run: Callable[..., torch.Tensor], index: int, forward: Callable[..., torch.Tensor]) -> Any:
    def experts(hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        return run(index, forward, hidden_states, top_k_index, top_k_weights)

    return experts


def compute(
    forward: Callable[..., torch.Tensor],
    hidden_TH: torch.Tensor,
    slots_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    out_TH: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run an experts module on slots, and add the result to `out_TH`; entries of NO_SLOT are left out.

    Returns:
        [T, H], `out_TH` where it is given.
    """
    used_TK = slots_TK != NO_SLOT
    if out_TH is None and bool(used_TK.all()):
        return forward(hidden_TH, slots_TK, weights_TK)
    token_P, place_P = used_TK.nonzero(as_tuple=True)
    out_TH = torch.zeros_like(hidden_TH) if out_TH is None else out_TH
    if len(token_P):
        # a row for each pair: no kernel has to compute what is left out
        pairs_PH = forward(hidden_TH[token_P], slots_TK[token_P, place_P, None], weights_TK[token_P, place_P, None])
        out_TH.index_add_(0, token_P, pairs_PH.to(out_TH.dtype))
    return out_TH
