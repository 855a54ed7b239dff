"""Batches of token windows from memory-mapped traces.

Shape suffixes: B batch, T tokens of a window, N real tokens of a batch, L MoE layers, K top-k, M = 2 * K, G n-grams,
D hidden size of the traced model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from moe_beyond.data.features import Features, token_features
from moe_beyond.data.tokens import TokenEncoder
from moe_beyond.errors import InputError
from moe_beyond.traces.schema import Trace


class Batch(NamedTuple):
    """Windows of one length after padding; padding is marked by `real_BT` and counts in no average.

    `gate_inputs_LND` is what the layers' routers read of the real tokens of which it is kept, `kept_BT` says of which.
    Both are empty where the predictor reads no hidden states.
    """

    tokens_BT: Tensor
    letters_BTG: Tensor
    previous_BTLM: Tensor
    experts_BTLK: Tensor
    real_BT: Tensor
    kept_BT: Tensor
    gate_inputs_LND: Tensor


class WindowDataset(Dataset[tuple[int, int]]):
    """Windows of a trace as (first token, end), without their content.

    Prompts are cut into windows of at most `length` tokens. With a generator, the first cut of each prompt is drawn, so
    that in training no token always stands at a window's start, where it has no history.
    """

    def __init__(self, trace: Trace, length: int, generator: np.random.Generator | None = None) -> None:
        self.windows: list[tuple[int, int]] = []
        for start, end in itertools.pairwise(np.asarray(trace.prompt_offsets).tolist()):
            shift = 0
            if generator is not None and end - start > length:
                shift = int(generator.integers(0, length))
            cuts = [start, *range(start + (shift or length), end, length), end]
            self.windows += itertools.pairwise(cuts)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self.windows[index]


class LengthBatches(Sampler[list[int]]):
    """Batches of windows of similar length, in random order: a third less padding than plain shuffling.

    Windows are shuffled, sorted by length within stretches of `_STRETCH` batches, and the batches shuffled again. Where
    several processes train together, each draws the same batches and takes its share of every one: together they see
    each window once an epoch, in as many steps and as large batches as one process.
    """

    _STRETCH = 8

    def __init__(
        self,
        windows: list[tuple[int, int]],
        batch_size: int,
        generator: np.random.Generator,
        *,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        if num_ranks > min(batch_size, len(windows)):
            raise InputError(
                f"train.batch_size: {batch_size} windows of {len(windows)} for {num_ranks} processes; each needs one"
            )
        lengths = np.array([end - start for start, end in windows])
        order = generator.permutation(len(windows))
        stretches = np.array_split(order, range(0, len(order), self._STRETCH * batch_size)[1:])
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in stretches])
        # a last batch that is too small for all processes joins the one before
        left = len(windows) % batch_size
        cuts = range(0, len(windows) - (left if left < num_ranks else 0), batch_size)[1:]
        batches = np.array_split(order, cuts)
        # drawn once: Lightning starts the iteration anew as often as it likes
        self.batches = [batches[index][rank::num_ranks].tolist() for index in generator.permutation(len(batches))]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class Collate:
    """Gathers the content of windows into a padded batch."""

    def __init__(self, trace: Trace, features: Features, *, reads_hidden: bool = False) -> None:
        self.features = features
        self.hidden = trace.hidden if reads_hidden else None
        self.num_layers = trace.metadata.num_layers
        self.experts_TLK = trace.experts_TLK
        self.none = trace.metadata.num_experts

    def __call__(self, windows: list[tuple[int, int]]) -> Batch:
        """Pad to the longest window of the batch."""
        real_BT = [np.ones(end - start, bool) for start, end in windows]
        features, none = self.features, self.none
        columns = (
            (features.tokens_T, 0),
            (features.letters_TG, 0),
            (features.previous_TLM, none),
            (self.experts_TLK, 0),
        )
        padded = [
            _pad([column[start:end].astype(np.int64) for start, end in windows], value) for column, value in columns
        ]
        return Batch._make([*padded, _pad(real_BT, 0), *self._hidden(windows)])

    def _hidden(self, windows: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Of which tokens hidden states are kept, bool [B, T], and what the routers read of these."""
        tokens_N = np.concatenate([np.arange(start, end) for start, end in windows])
        kept_N = np.zeros(len(tokens_N), bool) if self.hidden is None else np.asarray(self.hidden.rows_T)[tokens_N] >= 0
        cuts = np.cumsum([end - start for start, end in windows])[:-1]
        kept_BT = _pad(list(np.split(kept_N, cuts)), 0)
        if self.hidden is None:
            return kept_BT, torch.zeros(self.num_layers, 0, 0)
        return kept_BT, torch.from_numpy(self.hidden.gates_LND(tokens_N[kept_N], self.num_layers))


def _pad(rows: list[npt.NDArray[Any]], value: int) -> Tensor:
    return pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True, padding_value=value)


class RoutingData(pl.LightningDataModule):
    """Training and validation windows of two splits."""

    def __init__(
        self,
        train: Trace,
        validation: Trace,
        encoder: TokenEncoder,
        *,
        length: int,
        batch_size: int,
        seed: int,
        reads_hidden: bool = False,
    ) -> None:
        super().__init__()
        self.train, self.length, self.batch_size, self.seed = train, length, batch_size, seed
        self.validation_windows = WindowDataset(validation, length)
        self.train_collate = Collate(train, token_features(train, encoder), reads_hidden=reads_hidden)
        self.validation_collate = Collate(validation, token_features(validation, encoder), reads_hidden=reads_hidden)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Windows with the cuts and in the order of this epoch; the trainer calls it for every epoch."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        generator = np.random.default_rng([self.seed, epoch])
        windows = WindowDataset(self.train, self.length, generator)
        rank, num_ranks = self._rank()
        batches = LengthBatches(windows.windows, self.batch_size, generator, rank=rank, num_ranks=num_ranks)
        # the collate function turns windows into a Batch
        return DataLoader(windows, batch_sampler=batches, collate_fn=self.train_collate)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Batch]:
        """Validation windows in order, of several processes each its share."""
        rank, num_ranks = self._rank()
        share = Subset(self.validation_windows, range(rank, len(self.validation_windows), num_ranks))
        return DataLoader(share, self.batch_size, collate_fn=self.validation_collate)  # type: ignore[arg-type]

    def _rank(self) -> tuple[int, int]:
        """This process among those that train together."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
