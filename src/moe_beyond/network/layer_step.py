"""The layer step: from what the router just chose to a prediction for the next layers, cheaply.

It goes on from the token step's prediction and context. A chosen expert contributes in two ways: directly, through a
linear map to the logits of each of the next `reach` layers, and through a sum of embeddings over the layers so far,
which a small network reads together with the context. Training computes all layers at once; `forward` is one layer with
its state explicit. Both give the same predictions.

Shape suffixes: B batch, L MoE layers, E experts, K top-k, H horizon (row h is h + 1 layers ahead), R reach,
W width of this step, X = W + R * E.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_beyond.predictor.shape import NetworkShape


class LayerStep(nn.Module):
    """Logits for the next H layers, given the experts of the layers so far."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        if shape.reach < shape.horizon:
            raise ValueError(f"reach {shape.reach} is less than horizon {shape.horizon}")
        self.shape = shape
        layers, experts, width = shape.num_layers, shape.num_experts, shape.layer_width
        # a row an expert: its embedding, then its direct maps, so that a step gathers each chosen expert once
        self.seen = nn.Parameter(torch.zeros(layers * experts, width + shape.reach * experts))
        # routers list experts in the order of their weights
        self.slot_weight = nn.Parameter(torch.ones(layers, shape.top_k))
        self.layer_embedding = nn.Parameter(torch.zeros(layers, width))
        self.norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, shape.layer_hidden), nn.ReLU(), nn.Linear(shape.layer_hidden, width)
        )
        self.head = nn.Parameter(torch.zeros(layers, width, shape.horizon * experts))
        # how far to trust the token step's logits, by layer known and horizon
        self.trust = nn.Parameter(torch.ones(layers, shape.horizon))
        nn.init.normal_(self.seen[:, :width], std=0.3)
        nn.init.normal_(self.layer_embedding, std=0.1)

    def forward(
        self, layer: Tensor, experts_BK: Tensor, logits_BLE: Tensor, context_BW: Tensor, evidence_BRE: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step, after the router of a layer chose.

        Args:
            layer: int64 [1], index of that layer, 0 to L - 1.
            experts_BK: int64, what it chose, in the router's order.
            logits_BLE: The token step's prediction for this token, the same at every layer.
            context_BW: The token step's context at layer 0, after that this step's output.
            evidence_BRE: Zeros [B, R, E] at layer 0, after that this step's output.

        Returns:
            Logits [B, H, E] for layers layer + 1 to layer + H, of which those past L - 1 mean nothing; the new context
            [B, W]; the new evidence [B, R, E].
        """
        shape = self.shape
        # written for few nodes: at one token, a node of the exported graph costs more than its arithmetic
        rows_BKX = nn.functional.embedding(layer * shape.num_experts + experts_BK, self.seen)
        sum_BX = (self.slot_weight.unsqueeze(1).index_select(0, layer) @ rows_BKX).flatten(1)
        embedded_BW, direct_BY = sum_BX.split([shape.layer_width, shape.reach * shape.num_experts], dim=1)
        context_BW = context_BW + embedded_BW
        # the row of this layer is used up; evidence for later ones moves up
        moved_BRE = nn.functional.pad(evidence_BRE[:, 1:], (0, 0, 0, 1))
        evidence_BRE = moved_BRE + direct_BY.unflatten(1, (shape.reach, shape.num_experts))
        x_BW = context_BW + self.layer_embedding.index_select(0, layer)
        x_BW = x_BW + self.feed_forward(self.norm(x_BW))
        head_BHE = (x_BW @ self.head.index_select(0, layer)[0]).unflatten(1, (shape.horizon, shape.num_experts))
        ahead_H = (layer + 1 + torch.arange(shape.horizon, device=layer.device)).clamp(max=shape.num_layers - 1)
        trusted_BHE = logits_BLE.index_select(1, ahead_H) * self.trust.unsqueeze(-1).index_select(0, layer)
        return trusted_BHE + evidence_BRE[:, : shape.horizon] + head_BHE, context_BW, evidence_BRE

    def all_layers(self, experts_BLK: Tensor, logits_BLE: Tensor, context_BW: Tensor) -> Tensor:
        """Every step of every token at once, from the true experts of the layers before.

        Args:
            experts_BLK: int64, the router's choices; a batch of tokens, in any order.
            logits_BLE: The token step's predictions.
            context_BW: The token step's contexts.

        Returns:
            Logits [H, B, L, E]; entry [h, b, l] knows layers 0 to l - h - 1; with none to know, it is the token step's.
        """
        informed = self.informed(experts_BLK.transpose(0, 1), logits_BLE.transpose(0, 1), context_BW)
        whole = [torch.cat([logits_BLE[:, : h + 1], x.transpose(0, 1)], dim=1) for h, x in enumerate(informed)]
        return torch.stack(whole)

    def informed(self, experts_LBK: Tensor, logits_LBE: Tensor, context_BW: Tensor) -> list[Tensor]:
        """`all_layers`, of the layers alone that have known layers before them; layers come first, which is faster.

        Returns:
            For each horizon h, logits [L - h - 1, B, E] of layers h + 1 to L - 1.
        """
        shape = self.shape
        weights_LBK = self.slot_weight[:, None].expand(experts_LBK.shape)
        nothing_LBE = weights_LBK.new_zeros(*experts_LBK.shape[:2], shape.num_experts)
        chosen_LBE = nothing_LBE.scatter(2, experts_LBK, weights_LBK)
        seen_LEX = self.seen.view(shape.num_layers, shape.num_experts, -1)
        embedded_LBW = chosen_LBE @ seen_LEX[..., : shape.layer_width]
        # a sum over the layers so far: as a product faster than cumsum, both ways
        so_far_LL = torch.ones(shape.num_layers, shape.num_layers, device=embedded_LBW.device).tril()
        x_LBW = (
            (so_far_LL @ embedded_LBW.flatten(1)).view(embedded_LBW.shape) + context_BW + self.layer_embedding[:, None]
        )
        x_LBW = x_LBW + self.feed_forward(self.norm(x_LBW))
        head_LBX = x_LBW @ self.head
        predictions = []
        for h, evidence_LBE in enumerate(self._evidence(chosen_LBE, seen_LEX)):
            known = len(evidence_LBE)
            trusted_LBE = logits_LBE[shape.num_layers - known :] * self.trust[:known, h, None, None]
            head_LBE = head_LBX[:known, :, h * shape.num_experts : (h + 1) * shape.num_experts]
            predictions.append(trusted_LBE + evidence_LBE + head_LBE)
        return predictions

    def _evidence(self, chosen_LBE: Tensor, seen_LEX: Tensor) -> list[Tensor]:
        """For each horizon h, evidence of layers 0 to l - h - 1 for layers l = h + 1 to L - 1, [L - h - 1, B, E]."""
        shape = self.shape
        direct_LERE = seen_LEX[..., shape.layer_width :].unflatten(2, (shape.reach, shape.num_experts))
        total_LBE = chosen_LBE[:0]
        evidence: list[Tensor] = []
        # from the farthest layer to the nearest: the evidence of a horizon is a part of that of the one below
        for r in reversed(range(shape.reach)):
            known = max(shape.num_layers - 1 - r, 0)
            # layer r + 1 is the first with evidence at this distance; one row more than farther away
            total_LBE = nn.functional.pad(total_LBE, (0, 0, 0, 0, known - len(total_LBE), 0))
            total_LBE = total_LBE + chosen_LBE[:known] @ direct_LERE[:known, :, r]
            if r < shape.horizon:
                evidence.append(total_LBE)
        return evidence[::-1]
