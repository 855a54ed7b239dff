"""One way to fit a predictor, shared by the search for its size and the final fit.

Progress is a bar in a terminal and a line an epoch elsewhere. An interrupted fit goes on after its best epoch so
far, and ends as it would have without the interruption: everything random in an epoch follows from the seed and the
epoch's number.
"""

from __future__ import annotations

import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar

from moe_beyond.data.tokens import TokenEncoder
from moe_beyond.errors import InputError
from moe_beyond.network.checkpoint import Checkpoint
from moe_beyond.network.network import num_parameters
from moe_beyond.predictor.baselines import Popularity
from moe_beyond.threads import keep_freed_memory, torch_threads
from moe_beyond.traces.schema import Trace
from moe_beyond.training.datamodule import RoutingData
from moe_beyond.training.early_routers import early_routers
from moe_beyond.training.module import PredictorModule
from moe_beyond.training.settings import TrainSettings
from moe_beyond.training.size import Size, network_shape

log = logging.getLogger(__name__)
for name in ("lightning.pytorch", "lightning.fabric"):
    # hardware that is not there and products to try; what matters of a fit is logged here
    logging.getLogger(name).setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of torch
warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # meant: it is resumed

# the metrics of an epoch are brought together by torchmetrics before they are logged
warnings.filterwarnings("ignore", message="It is recommended to use `self.log.'validation.*sync_dist=True")


@dataclass(frozen=True)
class Fit:
    """A fitted predictor and how it came about.

    Attributes:
        checkpoint: All steps as of the best epoch by the mean of their validation recalls.
        history: A row an epoch: epoch, step, train_loss, validation_loss (of the token step), validation_recall_at_k,
            validation_recall_at_k_ahead_1 and so on, with hidden states validation_recall_at_k_hidden_1 and so on,
            validation_score.
    """

    checkpoint: Checkpoint
    history: tuple[dict[str, float], ...]

    def metrics(self) -> dict[str, float]:
        """Headline numbers of the fit."""
        best = max(self.history, key=lambda row: row["validation_score"])
        measured = {name: value for name, value in best.items() if name.startswith(("validation_", "train_"))}
        hidden = self.checkpoint.hidden_step
        return {
            "epochs": len(self.history),
            "best_epoch": best["epoch"],
            "parameters": num_parameters(self.checkpoint.network),
            "layer_step_parameters": num_parameters(self.checkpoint.layer_step),
            **({} if hidden is None else {"hidden_step_parameters": num_parameters(hidden)}),
            **measured,
        }


class _History(Callback):
    """Keeps a row an epoch, also over an interruption, and logs it."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        metrics = {name.replace("/", "_"): float(value) for name, value in sorted(trainer.callback_metrics.items())}
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "train_loss": metrics["train_loss"]}
        self.rows.append(row | {name: value for name, value in metrics.items() if name.startswith("validation_")})
        log.info(
            "epoch %d/%d  train loss %.4f  validation loss %.4f  recall@k %.4f, one layer ahead %.4f",
            trainer.current_epoch + 1,
            trainer.max_epochs,
            metrics["train_loss"],
            metrics["validation_loss"],
            metrics["validation_recall_at_k"],
            metrics["validation_recall_at_k_ahead_1"],
        )

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]


def fit(
    train: Trace,
    validation: Trace,
    size: Size,
    settings: TrainSettings,
    *,
    epochs: int,
    seed: int,
    scratch: Path,
) -> Fit:
    """Train a predictor and return the network of the best epoch.

    Args:
        train: Training prompts.
        validation: Prompts to choose the epoch by; of the same model, no prompt in common.
        size: Width, depth and heads.
        settings: Everything else.
        epochs: At most; the learning rate falls to zero over them.
        seed: Of weights, order, dropout and cuts.
        scratch: Directory for checkpoints of this fit alone; one that lies there is resumed, and the outcome is the
            same to the bit.

    Raises:
        InputError: The splits share a prompt, or the traces are of different models, or the loss became NaN.
    """
    require_disjoint(train, validation)
    train.metadata.require_same_model(validation.metadata, "validation split")
    keep_freed_memory()
    lightning.seed_everything(seed, workers=True, verbose=False)
    encoder = TokenEncoder.fit(train, settings.min_token_count, settings.letter_buckets)
    both = train.hidden is not None and validation.hidden is not None
    hidden_size = train.hidden.width if both and train.hidden is not None else 0
    shape = network_shape(train.metadata, encoder.num_tokens, size, settings, hidden_size)
    module = PredictorModule(shape, settings, seed)
    module.network.set_class_prior(torch.from_numpy(Popularity.fit(train).popularity_LE))
    if module.hidden_step is not None and train.hidden is not None and (routers := train.hidden.routers) is not None:
        early = early_routers(train, train.hidden, routers, shape.hidden_horizon)
        module.hidden_step.set_routers(*(torch.from_numpy(np.array(x)) for x in (routers.weights_LED, *early)))
    data = RoutingData(
        train,
        validation,
        encoder,
        length=2 * settings.window,
        batch_size=settings.batch_size,
        seed=seed,
        reads_hidden=shape.reads_hidden,
    )
    history = _History()
    best = ModelCheckpoint(
        scratch, "best", monitor="validation/score", mode="max", save_last=True, enable_version_counter=False
    )
    patience = EarlyStopping("validation/score", mode="max", patience=settings.patience)
    trainer = _trainer(settings, epochs, [history, best, patience])
    last = _whole(scratch / "last.ckpt")
    try:
        with torch_threads(settings.threads):
            trainer.fit(module, data, ckpt_path=last, weights_only=True)
    except FloatingPointError as error:
        raise InputError(f"train: {error}") from error
    state = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    module.load_state_dict(state)
    module.cpu().eval()
    checkpoint = Checkpoint(module.network, module.layer_step, encoder, train.metadata, module.hidden_step)
    return Fit(checkpoint, tuple(history.rows))


def _whole(checkpoint: Path) -> Path | None:
    """A checkpoint that can be gone on from; of one that a kill cut short the fit begins anew, and ends the same.

    Lightning writes beside the system's temporary files first: from another disk it comes as a copy, not at once.
    """
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - there is none, or whatever torch and zip make of half of one
        return None
    return checkpoint


def require_disjoint(train: Trace, other: Trace) -> None:
    """Raise InputError if a prompt is in both splits."""
    shared = sorted(set(train.prompt_ids) & set(other.prompt_ids))
    if shared:
        raise InputError(f"prompt {shared[0]!r} is in two splits ({len(shared)} in all); run the split stage again")


def _trainer(settings: TrainSettings, epochs: int, callbacks: list[Callback]) -> lightning.Trainer:
    # workers of the search show no bar
    terminal = sys.stderr.isatty() and log.isEnabledFor(logging.INFO)
    return lightning.Trainer(
        accelerator=settings.accelerator,
        precision=settings.precision,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        # the data module distributes the windows itself
        use_distributed_sampler=False,
        max_epochs=epochs,
        gradient_clip_val=settings.gradient_clip,
        callbacks=[*callbacks, *([RichProgressBar()] if terminal else [])],
        enable_progress_bar=terminal,
        enable_model_summary=False,
        logger=False,
        num_sanity_val_steps=0,
        deterministic=True,
        # windows are cut anew every epoch
        reload_dataloaders_every_n_epochs=1,
    )
