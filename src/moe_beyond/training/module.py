"""The predictor in Lightning: loss, validation metrics, optimiser. No data, no network code.

Both steps are trained together: the layer step's loss reaches the trunk through the token step's logits and context.

Shape suffixes: B batch, T tokens, N real tokens of a batch, L MoE layers (at a horizon, those after a known one),
E experts, K top-k, M = 2 * K.
"""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from moe_beyond.network.hidden_step import HiddenStep
from moe_beyond.network.layer_step import LayerStep
from moe_beyond.network.network import TokenStep
from moe_beyond.predictor.shape import NetworkShape
from moe_beyond.training.datamodule import Batch
from moe_beyond.training.losses import LOSSES, later_loss, next_token_recall
from moe_beyond.training.settings import TrainSettings

_TRUST_PACE = 10
"""Learning rate of trust, as a multiple of that of all else."""


class PredictorModule(pl.LightningModule):
    """Trains a TokenStep and its LayerStep over real tokens; the layer step gets the true experts so far.

    Where the predictor reads hidden states, a HiddenStep is trained beside the LayerStep, on what both have in common.
    """

    def __init__(self, shape: NetworkShape, settings: TrainSettings, seed: int) -> None:
        super().__init__()
        self.shape, self.settings, self.seed = shape, settings, seed
        self.network = TokenStep(shape, settings.dropout)
        self.layer_step = LayerStep(shape)
        self.hidden_step = HiddenStep(shape) if shape.reads_hidden else None
        self.validation_loss = MeanMetric()
        # of the token after this one, by what is predicted of later use
        self.next_token_recall = MeanMetric()
        # of the token step, then of the layer step at each horizon
        self.recalls: Any = nn.ModuleList(MeanMetric() for _ in range(shape.horizon + 1))
        self.hidden_recalls: Any = nn.ModuleList(
            MeanMetric() for _ in range(shape.hidden_horizon if shape.reads_hidden else 0)
        )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Draw the same dropout in an epoch, whether or not an interruption came before it."""
        if batch_idx == 0:  # the hook of the epoch's start is not called where a fit is resumed
            torch.manual_seed(int(np.random.SeedSequence([self.seed, self.current_epoch]).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch, with some tokens and some history hidden."""
        device, shape_BT = batch.real_BT.device, batch.real_BT.shape
        tokens_BT = batch.tokens_BT.masked_fill(torch.rand(shape_BT, device=device) < self.settings.token_dropout, 0)
        # the two halves apart: what the token before and the string's last time had
        hidden_BT2 = torch.rand(*shape_BT, 2, device=device) < self.settings.history_dropout
        hidden_BTM = hidden_BT2.repeat_interleave(self.shape.top_k, dim=2)
        previous_BTLM = batch.previous_BTLM.masked_fill(hidden_BTM[:, :, None], self.shape.num_experts)
        seen = batch._replace(tokens_BT=tokens_BT, previous_BTLM=previous_BTLM)
        (first, *further), hidden, later = predict(self.network, self.layer_step, seen, self.hidden_step)
        loss = self._loss(*first) + self.settings.later_loss_weight * later_loss(*later)
        # a model of few layers has none at the farthest horizons
        steps = [[prediction for prediction in step if prediction[0].numel()] for step in (further, hidden)]
        steps = [step for step in steps if step]
        for step in steps:
            # shared: a second layer step takes nothing from the weight of the token step
            weight = self.settings.layer_loss_weight / (len(steps) * len(step))
            loss = loss + weight * torch.stack([self._loss(*prediction) for prediction in step]).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {self.global_step}; lower train.learning_rate")
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=int(batch.real_BT.sum()))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss of the token step, and recall at k of both steps, over real tokens."""
        predictions, hidden, (later_BTLE, *truth) = predict(self.network, self.layer_step, batch, self.hidden_step)
        real, kept = batch.real_BT.sum(), batch.kept_BT.sum()
        self.validation_loss.update(self._loss(*predictions[0]), real)
        hits_L = hits_at_k(*predictions[0])
        for ahead, (metric, prediction) in enumerate(zip(self.recalls, predictions, strict=True)):
            # over all layers, as at use: the first have the token step's prediction
            metric.update(torch.cat([hits_L[:ahead], hits_at_k(*prediction)]).mean(), real)
        self.next_token_recall.update(next_token_recall(later_BTLE, *truth), real)
        if hidden and kept:
            logits_LNE, experts_LNK = predictions[0]
            where = batch.kept_BT[batch.real_BT]
            hits_L = hits_at_k(logits_LNE[:, where], experts_LNK[:, where])
            for ahead, (metric, prediction) in enumerate(zip(self.hidden_recalls, hidden, strict=True), start=1):
                metric.update(torch.cat([hits_L[:ahead], hits_at_k(*prediction)]).mean(), kept)

    def on_validation_epoch_end(self) -> None:
        """Metrics of the epoch, by name `<split>/<metric>`; `validation/recall_at_k_ahead_h` is h layers ahead."""
        self.log("validation/loss", self.validation_loss.compute(), prog_bar=True)
        recalls = [metric.compute() for metric in self.recalls]
        for ahead, recall in enumerate(recalls):
            name = f"validation/recall_at_k_ahead_{ahead}" if ahead else "validation/recall_at_k"
            self.log(name, recall, prog_bar=ahead < 2)
        deciding = recalls[:2]
        for ahead, metric in enumerate(self.hidden_recalls, start=1):
            recall = metric.compute()
            self.log(f"validation/recall_at_k_hidden_{ahead}", recall, prog_bar=ahead == 1)
            if ahead == 1:
                deciding = [*deciding, recall]
        self.log("validation/recall_at_k_next_token", self.next_token_recall.compute())
        # what chooses the epoch: all steps count alike
        self.log("validation/score", sum(deciding) / len(deciding))
        for metric in (self.validation_loss, self.next_token_recall, *self.recalls, *self.hidden_recalls):
            metric.reset()

    def configure_optimizers(self) -> Any:
        """AdamW; linear warm-up, then cosine to zero, by step."""
        settings = self.settings
        # how far to trust a source is few numbers that have far to go
        groups = [
            {
                "params": [weight for name, weight in self.named_parameters() if name.endswith("trust") == is_trust],
                "lr": settings.learning_rate * (_TRUST_PACE if is_trust else 1),
                "weight_decay": 0.0 if is_trust else settings.weight_decay,
            }
            for is_trust in (False, True)
        ]
        optimizer = torch.optim.AdamW(groups)
        total = int(self.trainer.estimated_stepping_batches)
        warmup = max(1, int(total * settings.warmup_fraction))

        def scale(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _loss(self, logits_LNE: Tensor, experts_LNK: Tensor) -> Tensor:
        return LOSSES[self.settings.loss](logits_LNE.float(), experts_LNK)


Predictions = list[tuple[Tensor, Tensor]]
"""Logits [L, N, E] with the truth [L, N, K] of each horizon; of the last layers alone, where others know nothing."""


def predict(
    network: TokenStep, layer_step: LayerStep, batch: Batch, hidden_step: HiddenStep | None = None
) -> tuple[Predictions, Predictions, tuple[Tensor, Tensor, Tensor]]:
    """Of the token step and the layer step at each horizon, over real tokens; of the hidden step, over those kept.

    Last come logits of later use [B, T, L, E], experts [B, T, L, K] and which tokens are real [B, T].
    """
    state = [part.to(batch.tokens_BT.device) for part in network.empty_state(len(batch.tokens_BT))]
    logits_BTLE, _, _, context_BTW, later_BTLE = network(
        batch.tokens_BT, batch.letters_BTG, batch.previous_BTLM, *state
    )
    # without padding, and with layers first: both save time in the layer step
    logits_LNE = logits_BTLE[batch.real_BT].transpose(0, 1)
    experts_LNK = batch.experts_BTLK[batch.real_BT].transpose(0, 1).contiguous()
    context_NW = context_BTW[batch.real_BT]

    def with_truth(logits: list[Tensor], experts_LNK: Tensor) -> Predictions:
        return [(part, experts_LNK[len(experts_LNK) - len(part) :]) for part in logits]

    informed = layer_step.informed(experts_LNK, logits_LNE, context_NW)
    plain = with_truth([logits_LNE, *informed], experts_LNK)
    later = later_BTLE, batch.experts_BTLK, batch.real_BT
    if hidden_step is None:
        return plain, [], later
    kept_N = batch.kept_BT[batch.real_BT]
    experts_LNK = experts_LNK[:, kept_N]
    informed = hidden_step.informed(experts_LNK, logits_LNE[:, kept_N], context_NW[kept_N], batch.gate_inputs_LND)
    return plain, with_truth(informed, experts_LNK), later


def hits_at_k(logits_LNE: Tensor, experts_LNK: Tensor) -> Tensor:
    """Share of the true experts among the K largest logits, mean over tokens, [L]."""
    predicted_LNK = logits_LNE.topk(experts_LNK.shape[-1], dim=-1).indices
    return (predicted_LNK[..., :, None] == experts_LNK[..., None, :]).any(-1).float().mean(dim=(1, 2))
