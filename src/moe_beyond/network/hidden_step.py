"""The layer step with hidden states: what the router of a layer read, beside what it chose.

The traced model's residual stream changes little from layer to layer, so what one router read says much about what the
next ones will read. It reaches the next layers' logits in four ways: through those layers' own routers, run early, and
brought down by a low-rank map directly, through the context of the layer step, and through a small network that sees
both.

Shape suffixes as in `layer_step`; D hidden size of the traced model, V rank, U units of the small network,
X = W + V + U.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from moe_beyond.network.layer_step import LayerStep
from moe_beyond.predictor.shape import NetworkShape

_FIRST_TRUST = 0.25
"""In the token step's logits, where routers are run early."""
_FARTHEST = 30.0
"""Log-odds of an early router are within it: where layers change little they would be in the hundreds."""
_STEEPEST = 128.0
"""A router's logit is multiplied with this at most: with more, what rounding does to it would be seen in log-odds."""


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
        # the traced model's own routers, with zeros beyond the last layer: nothing of them is learned
        self.routers: Tensor
        self.moved: Tensor
        self.slope: Tensor
        experts = shape.num_experts
        self.register_buffer("routers", torch.zeros(layers + self.horizon, experts, shape.hidden_size))
        self.register_buffer("moved", torch.zeros(layers * experts, self.horizon * experts))
        self.register_buffer("slope", torch.zeros(layers, self.horizon))
        self.router_trust = nn.Parameter(torch.ones(layers, self.horizon))

    def set_routers(self, weights_LED: Tensor, moved_LEHE: Tensor, slope_LH: Tensor) -> None:
        """Run the traced model's routers early.

        Args:
            weights_LED: Of the routers.
            moved_LEHE: By how much a chosen expert's output moves the logits of the next layers' routers, the mean, and
                its part of their biases.
            slope_LH: What the distance of a logit from the threshold is multiplied with, by the layer known and the
                horizon, to be log-odds.
        """
        self.routers[: len(weights_LED)] = weights_LED
        self.moved.copy_(moved_LEHE.flatten(0, 1).flatten(1))
        self.slope.copy_(slope_LH.clamp(max=_STEEPEST))
        nn.init.constant_(self.trust, _FIRST_TRUST)

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
        own_BE = gate_input_BD @ self.routers.index_select(0, layer)[0].T
        share_BK = self.share(own_BE, experts_BK)
        context_BW, evidence_BRE = self.taken_in(layer, experts_BK, context_BW, evidence_BRE, share_BK)
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
        early_BHE = self.run_early(layer, experts_BK, share_BK, gate_input_BD)
        return self.predicted(layer, x_BX, logits_BLE, evidence_BRE) + early_BHE, context_BW, evidence_BRE

    def share(self, own_XE: Tensor, experts_XK: Tensor) -> Tensor:
        """What each chosen expert has of its layer's output, 1 in the mean, by the layer's own router's logits."""
        return self.shape.top_k * own_XE.gather(-1, experts_XK).softmax(dim=-1)

    def run_early(self, layer: Tensor, experts_BK: Tensor, share_BK: Tensor, gate_input_BD: Tensor) -> Tensor:
        """What the next layers' routers make of this layer's input and output, [B, H, E], as far as it is trusted."""
        experts = self.shape.num_experts
        next_H = layer + 1 + torch.arange(self.horizon, device=layer.device)
        weights_XD = self.routers.index_select(0, next_H).flatten(0, 1)
        moved_BKX = nn.functional.embedding(layer * experts + experts_BK, self.moved)
        early_BX = gate_input_BD @ weights_XD.T + (share_BK.unsqueeze(1) @ moved_BKX).flatten(1)
        scale_LH1 = (self.slope * self.router_trust).unsqueeze(-1)
        return self.log_odds(early_BX.unflatten(1, (self.horizon, experts)), scale_LH1.index_select(0, layer))

    def log_odds(self, logits_XE: Tensor, scale_X1: Tensor) -> Tensor:
        """Log-odds of being chosen, by how far a logit lies above the threshold: half way from the K-th to the next.

        They are kept within `_FARTHEST` without a change of order.
        """
        shape = self.shape
        last_X2 = logits_XE.topk(min(shape.top_k + 1, shape.num_experts), dim=-1).values[..., -2:]
        above_XE = logits_XE - last_X2.mean(dim=-1, keepdim=True)
        return _FARTHEST * nn.functional.softsign(above_XE * (scale_X1.clamp(max=_STEEPEST) / _FARTHEST))

    @override
    def informed(  # type: ignore[override]
        self, experts_LBK: Tensor, logits_LBE: Tensor, context_BW: Tensor, gate_inputs_LBD: Tensor
    ) -> list[Tensor]:
        """As `LayerStep.informed`, with what each layer's router read."""
        shape = self.shape
        own_LBE = gate_inputs_LBD @ self.routers[: shape.num_layers].transpose(1, 2)
        share_LBK = self.share(own_LBE, experts_LBK)
        chosen_LBE, x_LBW = self.so_far(experts_LBK, context_BW, share_LBK)
        # the last layer has none after it
        last = shape.num_layers - 1
        low_LBV = gate_inputs_LBD[:last] @ self.down[:last]
        x_LBW = x_LBW[:last] + low_LBV @ self.to_context[:last]
        x_LBW = x_LBW + self.feed_forward(self.norm(x_LBW))
        both_LBY = torch.cat([self.norm(x_LBW), low_LBV], dim=-1)
        units_LBU = nn.functional.gelu(both_LBY @ self.to_units[:last] + self.units_bias[:last, None])
        learned = self.all_predicted(torch.cat([x_LBW, low_LBV, units_LBU], dim=-1), logits_LBE, chosen_LBE)
        share_LBE = torch.zeros_like(chosen_LBE).scatter(2, experts_LBK, share_LBK)
        moved_LEHE = self.moved.view(shape.num_layers, shape.num_experts, self.horizon, shape.num_experts)
        scale_LH11 = (self.slope * self.router_trust)[..., None, None]
        predictions = []
        for h, learned_LBE in enumerate(learned):
            known = len(learned_LBE)
            early_LBE = gate_inputs_LBD[:known] @ self.routers[1 + h : 1 + h + known].transpose(1, 2)
            early_LBE = early_LBE + share_LBE[:known] @ moved_LEHE[:known, :, h]
            predictions.append(learned_LBE + self.log_odds(early_LBE, scale_LH11[:known, h]))
        return predictions
