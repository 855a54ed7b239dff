"""The predictor in Lightning: loss, validation metrics, optimiser. No data, no network code.

Shape suffixes: B batch, T tokens, L MoE layers, E experts, K top-k.
"""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanMetric

from moe_beyond.data.datamodule import Batch
from moe_beyond.predictor.network import NetworkShape, TokenStep


class PredictorModule(pl.LightningModule):
    """Trains a TokenStep with element-wise binary cross-entropy over real tokens."""

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
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.shape = NetworkShape(**shape)
        self.network = TokenStep(self.shape, dropout)
        self.learning_rate, self.weight_decay, self.warmup_fraction = learning_rate, weight_decay, warmup_fraction
        self.history_dropout, self.token_dropout = history_dropout, token_dropout
        self.validation_loss, self.validation_recall = MeanMetric(), MeanMetric()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch, with some tokens and some history hidden."""
        tokens_BT = _hide(batch.tokens_BT, 0, self.token_dropout)
        hidden_BT = torch.rand(batch.real_BT.shape, device=batch.real_BT.device) < self.history_dropout
        previous_BTLK = batch.previous_BTLK.masked_fill(hidden_BT[..., None, None], self.shape.num_experts)
        state = [part.to(self.device) for part in self.network.empty_state(len(tokens_BT))]
        logits_BTLE, _, _ = self.network(tokens_BT, batch.letters_BTG, previous_BTLK, *state)
        loss = self._loss(logits_BTLE, batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {self.global_step}; lower train.learning_rate")
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=int(batch.real_BT.sum()))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and recall at k over real tokens."""
        state = [part.to(self.device) for part in self.network.empty_state(len(batch.tokens_BT))]
        logits_BTLE, _, _ = self.network(batch.tokens_BT, batch.letters_BTG, batch.previous_BTLK, *state)
        real = batch.real_BT.sum()
        self.validation_loss.update(self._loss(logits_BTLE, batch), real)
        named_BTLK = logits_BTLE.topk(self.shape.top_k, dim=-1).indices
        hits_BTL = (named_BTLK[..., :, None] == batch.experts_BTLK[..., None, :]).any(-1).float().mean(-1)
        self.validation_recall.update(hits_BTL[batch.real_BT].mean(), real)

    def on_validation_epoch_end(self) -> None:
        """Metrics of the epoch, by name `<split>/<metric>`."""
        self.log("validation/loss", self.validation_loss.compute(), prog_bar=True)
        self.log("validation/recall_at_k", self.validation_recall.compute(), prog_bar=True)
        self.validation_loss.reset()
        self.validation_recall.reset()

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

    def _loss(self, logits_BTLE: Tensor, batch: Batch) -> Tensor:
        """Element-wise binary cross-entropy, softplus(x) - x * y, without a tensor of targets: y is 1 K times."""
        positive_BTL = logits_BTLE.gather(-1, batch.experts_BTLK).sum(-1)
        loss_BTL = functional.softplus(logits_BTLE).sum(-1) - positive_BTL
        return loss_BTL[batch.real_BT].mean() / self.shape.num_experts


def _hide(x: Tensor, value: int, share: float) -> Tensor:
    return x.masked_fill(torch.rand(x.shape, device=x.device) < share, value)
