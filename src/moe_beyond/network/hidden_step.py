"""The layer step with hidden states: what the router of a layer read, beside what it chose.

The traced model's residual stream changes little from layer to layer, so what one router read says much about what the
next ones will read. A low-rank map brings it down; from there it reaches the next layers' logits in three ways:
directly, through the context of the layer step, and through a small network that sees both.

Shape suffixes as in `layer_step`; D hidden size of the traced model, V rank, U units of the small network,
X = W + V + U.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from moe_beyond.network.layer_step import LayerStep
from moe_beyond.predictor.shape import NetworkShape


class HiddenStep(LayerStep):
    """Logits for the next H layers, given experts and router inputs of the layers so far."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__(shape, shape.hidden_horizon)
        layers, width, rank, units = shape.num_layers, shape.layer_width, shape.hidden_rank, shape.hidden_units
        self.down = nn.Parameter(torch.randn(layers, shape.hidden_size, rank) * shape.hidden_size**-0.5)
        self.to_context = nn.Parameter(torch.randn(layers, rank, width) * (0.3 * rank**-0.5))
        self.to_units = nn.Parameter(torch.randn(layers, width + rank, units) * (width + rank) ** -0.5)
        self.units_bias = nn.Parameter(torch.zeros(layers, units))
        self.head = nn.Parameter(torch.zeros(layers, width + rank + units, self.horizon * shape.num_experts))

    @override
    def forward(  # type: ignore[override]
        self,
        layer: Tensor,
        experts_BK: Tensor,
        gate_input_BD: Tensor,
        logits_BLE: Tensor,
        context_BW: Tensor,
        evidence_BRE: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `LayerStep.forward`, with what the layer's router read."""
        context_BW, evidence_BRE = self.taken_in(layer, experts_BK, context_BW, evidence_BRE)
        low_BV = gate_input_BD @ self.down.index_select(0, layer)[0]
        x_BW = (
            context_BW
            + self.layer_embedding.index_select(0, layer)
            + low_BV @ self.to_context.index_select(0, layer)[0]
        )
        x_BW = x_BW + self.feed_forward(self.norm(x_BW))
        both_BY = torch.cat([self.norm(x_BW), low_BV], dim=-1)
        units_BU = nn.functional.gelu(
            both_BY @ self.to_units.index_select(0, layer)[0] + self.units_bias.index_select(0, layer)
        )
        x_BX = torch.cat([x_BW, low_BV, units_BU], dim=-1)
        return self.predicted(layer, x_BX, logits_BLE, evidence_BRE), context_BW, evidence_BRE

    @override
    def informed(  # type: ignore[override]
        self, experts_LBK: Tensor, logits_LBE: Tensor, context_BW: Tensor, gate_inputs_LBD: Tensor
    ) -> list[Tensor]:
        """As `LayerStep.informed`, with what each layer's router read."""
        chosen_LBE, x_LBW = self.so_far(experts_LBK, context_BW)
        # the last layer has none after it
        last = self.shape.num_layers - 1
        low_LBV = gate_inputs_LBD[:last] @ self.down[:last]
        x_LBW = x_LBW[:last] + low_LBV @ self.to_context[:last]
        x_LBW = x_LBW + self.feed_forward(self.norm(x_LBW))
        both_LBY = torch.cat([self.norm(x_LBW), low_LBV], dim=-1)
        units_LBU = nn.functional.gelu(both_LBY @ self.to_units[:last] + self.units_bias[:last, None])
        return self.all_predicted(torch.cat([x_LBW, low_LBV, units_LBU], dim=-1), logits_LBE, chosen_LBE)
