"""All that decides the outcome of a search, and from it the study's name: workers with the same inputs share it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

import moe_beyond
from moe_beyond.devices.device import load_device
from moe_beyond.files import fingerprint, folder_digest
from moe_beyond.simulator.study.settings import ReplaySettings
from moe_beyond.traces import store
from moe_beyond.traces.schema import Trace
from moe_beyond.training.settings import TrainSettings
from moe_beyond.tuning.candidates import Drawn, draw
from moe_beyond.tuning.settings import TuneSettings
from moe_beyond.tuning.time_per_token import Bench, bench_of

_CODE = Path(moe_beyond.__file__).parent


@dataclass(frozen=True)
class Inputs:
    """Data and parameters of a search; can be sent to another process, which opens the data itself.

    Attributes:
        splits: Folder of the splits; no test split is read.
        seed: Of the candidates, the prompts drawn and every fit.
        tune: Space, number of candidates, rule.
        train: Of every fit.
        simulate: How a cache is replayed.
    """

    splits: Path
    seed: int
    tune: TuneSettings
    train: TrainSettings
    simulate: ReplaySettings

    def key(self) -> str:
        """Fingerprint of data, parameters and code."""
        # the number of workers and the place of the study change nothing
        tune = self.tune.model_dump(exclude={"workers", "storage"})
        folders = [self.splits / "train", self.splits / "validation", _CODE]
        if self.tune.warm_start is not None:
            folders.append(Path(self.tune.warm_start))
        digests = [folder_digest(folder) for folder in folders]
        device = load_device(self.tune.device)
        return fingerprint(self.seed, tune, self.train, self.simulate, device, *digests)

    @cached_property
    def validation(self) -> Trace:
        """Prompts that recall and time per token are measured on."""
        return store.open_working(self.splits / "validation")

    @cached_property
    def train_prompts(self) -> Trace:
        """Training prompts: at most `tune.max_prompts`, drawn by the seed."""
        whole = store.open_working(self.splits / "train")
        drawn = np.random.default_rng(self.seed).permutation(whole.num_prompts)[: self.tune.max_prompts]
        return whole.select(np.sort(drawn))

    @cached_property
    def bench(self) -> Bench:
        """Where time per token is found. Raises InputError as `bench_of` does."""
        return bench_of(self.validation, self.tune, self.simulate)

    @cached_property
    def drawn(self) -> Drawn:
        """The candidates. Raises InputError as `draw` does."""
        return draw(self.tune, self.train, self.validation.metadata, self.seed, self.hidden_size)

    @property
    def hidden_size(self) -> int:
        """Of the hidden states that every fit reads; 0: the traces have none."""
        states = [trace.hidden for trace in (self.train_prompts, self.validation)]
        return 0 if states[0] is None or states[1] is None else states[0].width
