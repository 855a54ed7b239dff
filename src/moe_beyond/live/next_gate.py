"""What a later layer's router would choose for the hidden states that an earlier layer's has read.

Each architecture chooses in its own way (groups, biases, renormalised weights), so the later layer's whole block runs,
up to the point at which it calls its experts.

Shape suffixes: T tokens, K experts per token, H hidden size, W experts of all tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from moe_beyond.capture.hooks import by_falling_weight
from moe_beyond.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from moe_beyond.capture.discovery import MoELayer
    from moe_beyond.simulator.jit import I32


class _Chosen(Exception):  # noqa: N818 - no error: the block has chosen, and nothing more is wanted of it
    """Ends a block's forward where it calls its experts."""


class NextGate:
    """Asks routers.

    Attributes:
        asks: Whether a block runs that is only asked; its experts module then calls `answer`.
    """

    def __init__(self, blocks: list[nn.Module]) -> None:
        """Ask the blocks that hold router and experts, one a MoE layer."""
        self.asks = False
        self._blocks = blocks
        self._chosen: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def of(cls, model: nn.Module, layers: list[MoELayer]) -> NextGate:
        """Of a model's MoE layers."""
        return cls([model.get_submodule(layer.name.rpartition(".")[0]) for layer in layers])

    def choice(self, layer: int, hidden_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and combine weights [T, K] that the router of a layer (index) gives for hidden states.

        Raises:
            InputError: Its block cannot be run by itself.
        """
        self.asks, self._chosen = True, None
        try:
            self._blocks[layer](hidden_TH[None])
        except _Chosen:
            pass
        finally:
            self.asks = False
        if self._chosen is None:
            raise InputError(f"MoE layer {layer}: its router cannot be asked apart from its layer; use another policy")
        return self._chosen

    def experts(self, layer: int, hidden_TH: torch.Tensor) -> I32:
        """The experts that it chooses for one token, in falling order of weight, int32 [K]."""
        ids, weights = self.choice(layer, hidden_TH)
        ordered, _ = by_falling_weight(ids.long().cpu(), weights.float().cpu())
        return ordered[0].numpy().astype(np.int32)

    def answer(self, ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> None:
        """Called in place of the experts."""
        self._chosen = ids_TK, weights_TK
        raise _Chosen
