"""Training of the reference model: a fixed budget of tokens, the same result from the same seed, resumable.

Shape suffixes: N tokens of the corpus, B sequences of a batch, S tokens of a sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.functional import cross_entropy

from moe_beyond.capture.reference.model import balance_loss
from moe_beyond.errors import InputError
from moe_beyond.files import replacing

if TYPE_CHECKING:
    from transformers import DeepseekV2ForCausalLM, PreTrainedTokenizerFast

    from moe_beyond.capture.reference.corpus import Document
    from moe_beyond.capture.reference.settings import ReferenceSettings

_CHECKPOINT_STEPS = 100
Tokens = npt.NDArray[np.int64]


@dataclass
class History:
    """What training measured: losses in nats a token. `validation` is None between validations."""

    steps: list[int] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float | None] = field(default_factory=list)


def encode(documents: list[Document], tokenizer: PreTrainedTokenizerFast) -> Tokens:
    """All documents as one row of token ids, int64 [N], each followed by the end token."""
    encoded = tokenizer([document.text for document in documents], add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    return np.concatenate([np.array([*ids, end], np.int64) for ids in encoded])


def num_steps(settings: ReferenceSettings) -> int:
    """Optimiser steps that the token budget buys, at least one."""
    return max(1, settings.tokens // (settings.sequence_tokens * settings.batch_sequences))


def learning_rate(settings: ReferenceSettings, step: int) -> float:
    """Linear warm-up, then a cosine to zero; `step` counts from 0."""
    steps = num_steps(settings)
    warmup = max(1, round(settings.warmup_share * steps))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def batch_BS(tokens_N: Tokens, settings: ReferenceSettings, seed: int, step: int) -> torch.Tensor:
    """Sequences of one step, int64 [B, S]; a function of seed and step alone, so that training resumes exactly.

    An epoch cuts the corpus into sequences from a random offset and shuffles them.
    """
    sequences = []
    per_epoch = len(tokens_N) // settings.sequence_tokens - 1
    first = step * settings.batch_sequences
    for number in range(first, first + settings.batch_sequences):
        epoch, index = divmod(number, per_epoch)
        rng = np.random.default_rng([seed, epoch])
        offset = int(rng.integers(settings.sequence_tokens))
        start = offset + int(rng.permutation(per_epoch)[index]) * settings.sequence_tokens
        sequences.append(tokens_N[start : start + settings.sequence_tokens])
    return torch.from_numpy(np.stack(sequences))


def fit(
    model: DeepseekV2ForCausalLM,
    train_N: Tokens,
    validation_N: Tokens,
    settings: ReferenceSettings,
    *,
    seed: int,
    scratch: Path,
) -> History:
    """Train `model` in place for the token budget; a killed call goes on from the checkpoint in `scratch`.

    Args:
        model: The model to train.
        train_N: Token ids to learn from.
        validation_N: Held-out token ids.
        settings: Budget and optimiser.
        seed: Order of the sequences.
        scratch: Folder of this very training; the caller removes it when the model is saved.

    Raises:
        InputError: The corpus is shorter than two sequences, or the loss became infinite or no number.
    """
    if len(train_N) < 2 * settings.sequence_tokens or len(validation_N) < settings.sequence_tokens:
        raise InputError(
            f"reference: {len(train_N)} training and {len(validation_N)} validation tokens do not fill sequences of "
            f"{settings.sequence_tokens}; lower reference.sequence_tokens or held_out_share"
        )
    steps = num_steps(settings)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.95)
    )
    checkpoint = scratch / "checkpoint.pt"
    history, start = _resume(checkpoint, model, optimizer)
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn()) as progress:
        bar = progress.add_task("", total=steps, completed=start)
        for step in range(start, steps):
            loss = _train_step(model, optimizer, batch_BS(train_N, settings, seed, step), settings, step)
            if not math.isfinite(loss):
                raise InputError(f"reference: loss is {loss} at step {step + 1}; lower reference.learning_rate")
            due = (step + 1) * settings.validations % steps < settings.validations
            validation = validate(model, validation_N, settings) if due else None
            if due or step % 10 == 0:
                history.steps.append(step + 1)
                history.train_loss.append(loss)
                history.validation_loss.append(validation)
                progress.update(bar, description=f"loss {loss:.2f}")
            if (step + 1) % _CHECKPOINT_STEPS == 0:
                _save(checkpoint, model, optimizer, history, step + 1)
            progress.advance(bar)
    return history


@torch.no_grad()
def validate(model: DeepseekV2ForCausalLM, validation_N: Tokens, settings: ReferenceSettings) -> float:
    """Mean cross-entropy of held-out text in nats a token, over whole sequences."""
    model.eval()
    total, count = 0.0, 0
    for tokens_BS in validation_batches(validation_N, settings):
        logits_BSV = model(tokens_BS, use_cache=False).logits
        losses = cross_entropy(logits_BSV[:, :-1].flatten(0, 1), tokens_BS[:, 1:].flatten(), reduction="sum")
        total += float(losses.detach())
        count += tokens_BS[:, 1:].numel()
    return total / count


def validation_batches(validation_N: Tokens, settings: ReferenceSettings) -> list[torch.Tensor]:
    """Held-out sequences, spread evenly over the held-out text, in batches of int64 [B, S]."""
    available = len(validation_N) // settings.sequence_tokens
    wanted = min(available, max(1, settings.validation_tokens // settings.sequence_tokens))
    chosen = np.linspace(0, available - 1, wanted).astype(int)
    sequences = validation_N[: available * settings.sequence_tokens].reshape(available, -1)[chosen]
    return list(torch.from_numpy(sequences).split(settings.batch_sequences))


def _train_step(
    model: DeepseekV2ForCausalLM,
    optimizer: torch.optim.Optimizer,
    tokens_BS: torch.Tensor,
    settings: ReferenceSettings,
    step: int,
) -> float:
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, step)
    output = model(tokens_BS, use_cache=False, output_router_logits=True)
    language = cross_entropy(output.logits[:, :-1].flatten(0, 1), tokens_BS[:, 1:].flatten())
    loss = language + settings.balance_weight * balance_loss(output.router_logits, settings.top_k)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    # in deep models a gradient overflows now and then: such a step would undo all others
    if torch.isfinite(norm):
        optimizer.step()
    return float(language.detach())


def _save(
    path: Path, model: DeepseekV2ForCausalLM, optimizer: torch.optim.Optimizer, history: History, step: int
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": [history.steps, history.train_loss, history.validation_loss],
        "step": step,
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def _resume(path: Path, model: DeepseekV2ForCausalLM, optimizer: torch.optim.Optimizer) -> tuple[History, int]:
    if not path.exists():
        return History(), 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return History(*state["history"]), int(state["step"])
