"""The predictor in Lightning: loss, validation metrics, optimiser. No data, no network code.

Both steps are trained in one: the layer step's loss reaches the trunk through the token step's logits and context.

Shape suffixes: B batch, T tokens, N real tokens of a batch, L MoE layers, E experts, K top-k, H horizon.
"""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric

from moe_beyond.data.datamodule import Batch
from moe_beyond.predictor.layer_step import LayerStep
from moe_beyond.predictor.network import NetworkShape, TokenStep


class PredictorModule(pl.LightningModule):
    """Trains a TokenStep and its LayerStep over real tokens; the layer step is told the true experts so far."""

    def __init__(
        self,
        shape: dict[str, int],
        *,
        learning_rate: float,
        weight_decay: float,
        warmup_fraction: float,
        dropout: float,
        history_dropout: float,
        token_dropout: float,
        layer_loss_weight: float,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.shape = NetworkShape(**shape)
        self.network = TokenStep(self.shape, dropout)
        self.layer_step = LayerStep(self.shape, dropout)
        self.learning_rate, self.weight_decay, self.warmup_fraction = learning_rate, weight_decay, warmup_fraction
        self.history_dropout, self.token_dropout = history_dropout, token_dropout
        self.layer_loss_weight = layer_loss_weight
        self.validation_loss, self.validation_recall = MeanMetric(), MeanMetric()
        self.validation_layer_recall = [MeanMetric() for _ in range(self.shape.horizon)]
        # a list alone would stay behind when the module changes devices
        self.metrics_to_move = nn.ModuleList(self.validation_layer_recall)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch, with some tokens and some history hidden."""
        tokens_BT = _hide(batch.tokens_BT, 0, self.token_dropout)
        hidden_BT = torch.rand(batch.real_BT.shape, device=batch.real_BT.device) < self.history_dropout
        previous_BTLK = batch.previous_BTLK.masked_fill(hidden_BT[..., None, None], self.shape.num_experts)
        logits_NLE, answers_HNLE, experts_NLK = self._answer(
            tokens_BT, batch.letters_BTG, previous_BTLK, batch.experts_BTLK, batch.real_BT
        )
        loss = self._loss(logits_NLE, experts_NLK)
        layer_loss = torch.stack([self._loss(answers_NLE, experts_NLK) for answers_NLE in answers_HNLE]).mean()
        loss = loss + self.layer_loss_weight * layer_loss
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {self.global_step}; lower train.learning_rate")
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=int(batch.real_BT.sum()))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss of the token step, and recall at k of both steps, over real tokens."""
        logits_NLE, answers_HNLE, experts_NLK = self._answer(
            batch.tokens_BT, batch.letters_BTG, batch.previous_BTLK, batch.experts_BTLK, batch.real_BT
        )
        real = batch.real_BT.sum()
        self.validation_loss.update(self._loss(logits_NLE, experts_NLK), real)
        self.validation_recall.update(recall_at_k(logits_NLE, experts_NLK), real)
        for metric, answers_NLE in zip(self.validation_layer_recall, answers_HNLE, strict=True):
            metric.update(recall_at_k(answers_NLE, experts_NLK), real)

    def on_validation_epoch_end(self) -> None:
        """Metrics of the epoch, by name `<split>/<metric>`; `validation/recall_at_k_ahead_h` is h layers ahead."""
        self.log("validation/loss", self.validation_loss.compute(), prog_bar=True)
        self.log("validation/recall_at_k", self.validation_recall.compute(), prog_bar=True)
        recalls = [metric.compute() for metric in self.validation_layer_recall]
        for h, recall in enumerate(recalls):
            self.log(f"validation/recall_at_k_ahead_{h + 1}", recall, prog_bar=h == 0)
        # what chooses the epoch: both steps count alike
        self.log("validation/score", (self.validation_recall.compute() + recalls[0]) / 2)
        for metric in (self.validation_loss, self.validation_recall, *self.validation_layer_recall):
            metric.reset()

    def configure_optimizers(self) -> Any:
        """AdamW; linear warm-up, then cosine to zero, by step."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        total = int(self.trainer.estimated_stepping_batches)
        warmup = max(1, int(total * self.warmup_fraction))

        def scale(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _answer(
        self, tokens_BT: Tensor, letters_BTG: Tensor, previous_BTLK: Tensor, experts_BTLK: Tensor, real_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the token step, of the layer step at each horizon, and the true experts, of real tokens alone."""
        state = [part.to(self.device) for part in self.network.empty_state(len(tokens_BT))]
        logits_BTLE, _, _, context_BTW = self.network(tokens_BT, letters_BTG, previous_BTLK, *state)
        logits_NLE, context_NW, experts_NLK = logits_BTLE[real_BT], context_BTW[real_BT], experts_BTLK[real_BT]
        return logits_NLE, self.layer_step.all_layers(experts_NLK, logits_NLE, context_NW), experts_NLK

    def _loss(self, logits_NLE: Tensor, experts_NLK: Tensor) -> Tensor:
        """Element-wise binary cross-entropy, softplus(x) - x * y, without a tensor of targets: y is 1 K times."""
        logits_NLE = logits_NLE.float()
        positive_NL = logits_NLE.gather(-1, experts_NLK).sum(-1)
        loss_NL = functional.softplus(logits_NLE).sum(-1) - positive_NL
        return loss_NL.mean() / self.shape.num_experts


def recall_at_k(logits_NLE: Tensor, experts_NLK: Tensor) -> Tensor:
    """Share of the true experts among the K largest logits, mean over tokens and layers."""
    named_NLK = logits_NLE.topk(experts_NLK.shape[-1], dim=-1).indices
    return (named_NLK[..., :, None] == experts_NLK[..., None, :]).any(-1).float().mean()


def _hide(x: Tensor, value: int, share: float) -> Tensor:
    return x.masked_fill(torch.rand(x.shape, device=x.device) < share, value)
