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

    def __init__(self, shape: NetworkShape, horizon: int | None = None) -> None:
        """`horizon` other than the shape's is that of a step with further inputs."""
        super().__init__()
        self.shape, self.horizon = shape, shape.horizon if horizon is None else horizon
        self.reach = shape.reach if horizon is None else max(shape.reach, horizon)
        if self.reach < self.horizon:
            raise ValueError(f"reach {self.reach} is less than horizon {self.horizon}")
        layers, experts, width = shape.num_layers, shape.num_experts, shape.layer_width
        # a row an expert: its embedding, then its direct maps, so that a step gathers each chosen expert once
        self.seen = nn.Parameter(torch.zeros(layers * experts, width + self.reach * experts))
        # routers list experts in the order of their weights
        self.slot_weight = nn.Parameter(torch.ones(layers, shape.top_k))
        self.layer_embedding = nn.Parameter(torch.zeros(layers, width))
        self.norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, shape.layer_hidden), nn.ReLU(), nn.Linear(shape.layer_hidden, width)
        )
        self.head = nn.Parameter(torch.zeros(layers, width, self.horizon * experts))
        # how far to trust the token step's logits, by layer known and horizon
        self.trust = nn.Parameter(torch.ones(layers, self.horizon))
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
        context_BW, evidence_BRE = self.taken_in(layer, experts_BK, context_BW, evidence_BRE)
        x_BW = context_BW + self.layer_embedding.index_select(0, layer)
        x_BW = x_BW + self.feed_forward(self.norm(x_BW))
        return self.predicted(layer, x_BW, logits_BLE, evidence_BRE), context_BW, evidence_BRE

    def taken_in(
        self,
        layer: Tensor,
        experts_BK: Tensor,
        context_BW: Tensor,
        evidence_BRE: Tensor,
        share_BK: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Context and evidence with what a layer's router chose; `share_BK` as `so_far` has it."""
        shape = self.shape
        # written for few nodes: at one token, a node of the exported graph costs more than its arithmetic
        rows_BKX = nn.functional.embedding(layer * shape.num_experts + experts_BK, self.seen)
        weight_B1K = self.slot_weight.unsqueeze(1).index_select(0, layer)
        sum_BX = ((weight_B1K if share_BK is None else weight_B1K * share_BK.unsqueeze(1)) @ rows_BKX).flatten(1)
        embedded_BW, direct_BY = sum_BX.split([shape.layer_width, self.reach * shape.num_experts], dim=1)
        # the row of this layer is used up; evidence for later ones moves up
        moved_BRE = nn.functional.pad(evidence_BRE[:, 1:], (0, 0, 0, 1))
        return context_BW + embedded_BW, moved_BRE + direct_BY.unflatten(1, (self.reach, shape.num_experts))

    def predicted(self, layer: Tensor, x_BX: Tensor, logits_BLE: Tensor, evidence_BRE: Tensor) -> Tensor:
        """Logits [B, H, E] of the head's inputs, the token step's logits and the evidence."""
        head_BHE = (x_BX @ self.head.index_select(0, layer)[0]).unflatten(1, (self.horizon, self.shape.num_experts))
        ahead_H = (layer + 1 + torch.arange(self.horizon, device=layer.device)).clamp(max=self.shape.num_layers - 1)
        trusted_BHE = logits_BLE.index_select(1, ahead_H) * self.trust.unsqueeze(-1).index_select(0, layer)
        return torch.as_tensor(trusted_BHE + evidence_BRE[:, : self.horizon] + head_BHE)

    def all_layers(self, experts_BLK: Tensor, logits_BLE: Tensor, context_BW: Tensor, *states: Tensor) -> Tensor:
        """Every step of every token at once, from the true experts of the layers before.

        Args:
            experts_BLK: int64, the router's choices; a batch of tokens, in any order.
            logits_BLE: The token step's predictions.
            context_BW: The token step's contexts.
            states: Further inputs of each layer, layers first, where the step has some.

        Returns:
            Logits [H, B, L, E]; entry [h, b, l] knows layers 0 to l - h - 1; with none to know, it is the token step's.
        """
        informed = self.informed(experts_BLK.transpose(0, 1), logits_BLE.transpose(0, 1), context_BW, *states)
        whole = [torch.cat([logits_BLE[:, : h + 1], x.transpose(0, 1)], dim=1) for h, x in enumerate(informed)]
        return torch.stack(whole)

    def informed(self, experts_LBK: Tensor, logits_LBE: Tensor, context_BW: Tensor) -> list[Tensor]:
        """`all_layers`, of the layers alone that have known layers before them; layers come first, which is faster.

        Returns:
            For each horizon h, logits [L - h - 1, B, E] of layers h + 1 to L - 1.
        """
        chosen_LBE, x_LBW = self.so_far(experts_LBK, context_BW)
        x_LBW = x_LBW[: self.shape.num_layers - 1]
        return self.all_predicted(x_LBW + self.feed_forward(self.norm(x_LBW)), logits_LBE, chosen_LBE)

    def so_far(self, experts_LBK: Tensor, context_BW: Tensor, share_LBK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weights of the chosen experts [L, B, E], and the context at each layer [L, B, W].

        `share_LBK` is what each chosen expert has of its layer's output, 1 in the mean, where that is known.
        """
        shape = self.shape
        weights_LBK = self.slot_weight[:, None].expand(experts_LBK.shape)
        weights_LBK = weights_LBK if share_LBK is None else weights_LBK * share_LBK
        nothing_LBE = weights_LBK.new_zeros(*experts_LBK.shape[:2], shape.num_experts)
        chosen_LBE = nothing_LBE.scatter(2, experts_LBK, weights_LBK)
        embedded_LBW = chosen_LBE @ self._seen_LEX[..., : shape.layer_width]
        # a sum over the layers so far: as a product faster than cumsum, both ways
        so_far_LL = torch.ones(shape.num_layers, shape.num_layers, device=embedded_LBW.device).tril()
        summed_LBW = (so_far_LL @ embedded_LBW.flatten(1)).view(embedded_LBW.shape)
        return chosen_LBE, summed_LBW + context_BW + self.layer_embedding[:, None]

    def all_predicted(self, x_LBX: Tensor, logits_LBE: Tensor, chosen_LBE: Tensor) -> list[Tensor]:
        """As `predicted`, of all layers that have later ones: what `informed` returns.

        Args:
            x_LBX: Inputs of the head; those of the last layer may be missing.
            logits_LBE: The token step's.
            chosen_LBE: As `so_far` gives them.
        """
        shape = self.shape
        predictions = []
        for h, evidence_LBE in enumerate(self._evidence(chosen_LBE, self._seen_LEX)):
            known = len(evidence_LBE)
            trusted_LBE = logits_LBE[shape.num_layers - known :] * self.trust[:known, h, None, None]
            # not what lies beyond the last layer: in a model of few layers that would be half of it
            head_LBE = x_LBX[:known] @ self.head[:known, :, h * shape.num_experts : (h + 1) * shape.num_experts]
            predictions.append(trusted_LBE + evidence_LBE + head_LBE)
        return predictions

    @property
    def _seen_LEX(self) -> Tensor:
        return self.seen.view(self.shape.num_layers, self.shape.num_experts, -1)

    def _evidence(self, chosen_LBE: Tensor, seen_LEX: Tensor) -> list[Tensor]:
        """For each horizon h, evidence of layers 0 to l - h - 1 for layers l = h + 1 to L - 1, [L - h - 1, B, E]."""
        shape = self.shape
        direct_LERE = seen_LEX[..., shape.layer_width :].unflatten(2, (self.reach, shape.num_experts))
        total_LBE = chosen_LBE[:0]
        evidence: list[Tensor] = []
        # from the farthest layer to the nearest: the evidence of a horizon is a part of that of the one below
        for r in reversed(range(self.reach)):
            known = max(shape.num_layers - 1 - r, 0)
            # layer r + 1 is the first with evidence at this distance; one row more than farther away
            total_LBE = nn.functional.pad(total_LBE, (0, 0, 0, 0, known - len(total_LBE), 0))
            total_LBE = total_LBE + chosen_LBE[:known] @ direct_LERE[:known, :, r]
            if r < self.horizon:
                evidence.append(total_LBE)
        return evidence[::-1]
