"""Fits the network of the MoE-Beyond paper (arXiv 2508.17137) by the paper's recipe, on the same splits as ours.

AdamW at 1e-4, with 0.9 and 0.8 of it for the encoder and the head; element-wise binary cross-entropy; gradients clipped
at 1; the epoch of the least validation loss, and an end after five without a better one. Its published batch holds a
hundred prompts; ours is `train.batch_size`.

Shape suffixes: B batch, T tokens of a window, L MoE layers, E experts, K top-k.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor
from torch.nn import functional

from moe_beyond.data.tokens import TokenEncoder
from moe_beyond.files import replacing
from moe_beyond.paper.network import VARIANTS, PublishedNetwork, PublishedPredictor, PublishedShape, Variant
from moe_beyond.threads import torch_threads
from moe_beyond.traces.schema import Trace
from moe_beyond.training.datamodule import Batch, RoutingData
from moe_beyond.training.settings import TrainSettings

log = logging.getLogger(__name__)
_LEARNING_RATE, _PATIENCE, _GRADIENT_CLIP = 1e-4, 5, 1.0


class PublishedModule(lightning.LightningModule):
    """Loss, validation and optimiser of the published recipe."""

    def __init__(self, shape: PublishedShape, variant: Variant, learning_rate: float = _LEARNING_RATE) -> None:
        super().__init__()
        self.network = PublishedNetwork(shape, variant)
        self.learning_rate = learning_rate

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        return self._loss(batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss over real tokens."""
        self.log("validation/loss", self._loss(batch), batch_size=int(batch.real_BT.sum()))

    def on_validation_epoch_end(self) -> None:
        """Progress for people."""
        loss = float(self.trainer.callback_metrics["validation/loss"])
        log.info("%s: epoch %d  validation loss %.4f", self.network.variant, self.current_epoch + 1, loss)

    def configure_optimizers(self) -> Any:
        """AdamW with the three rates."""
        network, rate = self.network, self.learning_rate
        inputs = [network.token_embedding, network.letter_embedding, network.rows_in]
        return torch.optim.AdamW(
            [
                {"params": [p for module in inputs for p in module.parameters()], "lr": rate},
                {"params": list(network.encoder.parameters()), "lr": 0.9 * rate},
                {"params": list(network.head.parameters()), "lr": 0.8 * rate},
            ],
            weight_decay=0.01,
        )

    def _loss(self, batch: Batch) -> Tensor:
        """Binary cross-entropy, mean over the elements of real tokens."""
        logits_BTLE = self.network(batch.tokens_BT, batch.letters_BTG, batch.real_BT)
        true_BTLE = torch.zeros_like(logits_BTLE).scatter_(-1, batch.experts_BTLK, 1.0)
        return functional.binary_cross_entropy_with_logits(logits_BTLE[batch.real_BT], true_BTLE[batch.real_BT])


def fit_variants(
    train: Trace, validation: Trace, settings: TrainSettings, *, seed: int, scratch: Path, directory: Path
) -> None:
    """Train both variants for `settings.published_epochs` and save each in a folder of its name; none for 0 epochs.

    Args:
        train: Prompts to learn from.
        validation: Prompts to choose the epoch by.
        settings: Of the train stage.
        seed: Of weights, order and dropout, for each alike.
        scratch: Directory for checkpoints.
        directory: Replaced, also where nothing is trained.
    """
    with replacing(directory) as temporary:
        temporary.mkdir()
        for variant in VARIANTS if settings.published_epochs else ():
            epochs, own = settings.published_epochs, scratch / f"published_{variant}"
            fitted = fit_published(train, validation, variant, settings, epochs=epochs, seed=seed, scratch=own)
            fitted.save(temporary / variant)


def fit_published(
    train: Trace,
    validation: Trace,
    variant: Variant,
    settings: TrainSettings,
    *,
    epochs: int,
    seed: int,
    scratch: Path,
    shape: PublishedShape | None = None,
    learning_rate: float = _LEARNING_RATE,
) -> PublishedPredictor:
    """Train the published network.

    Args:
        train: Prompts to learn from.
        validation: Prompts to choose the epoch by.
        variant: `causal` or `leaky`.
        settings: Batch size, vocabulary, device and threads; all else is the paper's.
        epochs: At most.
        seed: Of weights, order and dropout.
        scratch: Directory for checkpoints of this fit alone; one that lies there is resumed.
        shape: Other sizes than the paper's, for tests.
        learning_rate: Another rate than the paper's, for tests.
    """
    train.metadata.require_same_model(validation.metadata, "validation split")
    lightning.seed_everything(seed, workers=True, verbose=False)
    encoder = TokenEncoder.fit(train, settings.min_token_count, settings.letter_buckets)
    if shape is None:
        meta = train.metadata
        shape = PublishedShape(meta.num_layers, meta.num_experts, encoder.num_tokens, settings.letter_buckets)
    module = PublishedModule(shape, variant, learning_rate)
    data = RoutingData(train, validation, encoder, length=shape.window, batch_size=settings.batch_size, seed=seed)
    best = ModelCheckpoint(scratch, "best", monitor="validation/loss", save_last=True, enable_version_counter=False)
    trainer = lightning.Trainer(
        accelerator=settings.accelerator,
        devices=1,
        max_epochs=epochs,
        gradient_clip_val=_GRADIENT_CLIP,
        callbacks=[best, EarlyStopping("validation/loss", patience=_PATIENCE)],
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        num_sanity_val_steps=0,
        deterministic=True,
        reload_dataloaders_every_n_epochs=1,
    )
    last = scratch / "last.ckpt"
    with torch_threads(settings.threads):
        trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
    module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    return PublishedPredictor(module.network.cpu().eval(), encoder, train.metadata)
