"""All that decides the outcome of a search, and from it the study's name: whoever has the same inputs shares it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_beyond.files import fingerprint
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.traces import store
from moe_beyond.traces.schema import Trace
from moe_beyond.training.settings import TrainSettings
from moe_beyond.tuning.payoff import bench_of
from moe_beyond.tuning.settings import TuneSettings
from moe_beyond.tuning.storage import StudyPlace
from moe_beyond.tuning.trial import Job, TrialLog

_NO_MATTER = {"workers", "storage"}  # who works on the study, and where it lies


@dataclass(frozen=True)
class Inputs:
    """Parameters of a search.

    Attributes:
        seed: Of the sampler, the prompts drawn and every fit.
        tune: Space, number of trials, workers, rule.
        train: Of every fit.
        simulate: How a cache is replayed.
        opset: Of the exported graphs that are timed.
    """

    seed: int
    tune: TuneSettings
    train: TrainSettings
    simulate: SimulateSettings
    opset: int

    def key(self, digests: Iterable[str]) -> str:
        """Fingerprint of the parameters and of the digests of data and code, in their order."""
        earlier = None
        if self.tune.warm_start is not None and Path(self.tune.warm_start).is_file():
            earlier = Path(self.tune.warm_start).read_text(encoding="utf-8")
        tune = self.tune.model_dump(exclude=_NO_MATTER)
        return fingerprint(self.seed, tune, self.train, self.simulate, self.opset, earlier, *digests)

    def job(self, splits: Path, place: StudyPlace, trial_log: TrialLog) -> Job:
        """What each worker gets.

        Args:
            splits: Folder of the splits; no test split is read.
            place: Where the study lies.
            trial_log: Records each trial.

        Raises:
            InputError: Unknown device, or validation prompts that decode nothing.
        """
        return self.job_on(
            store.open_working(splits / "train"), store.open_working(splits / "validation"), place, trial_log
        )

    def job_on(self, train: Trace, validation: Trace, place: StudyPlace, trial_log: TrialLog) -> Job:
        """As `job`, on traces that are open already; at most `tune.max_prompts` are trained on, drawn by the seed."""
        drawn = np.sort(np.random.default_rng(self.seed).permutation(train.num_prompts)[: self.tune.max_prompts])
        bench = bench_of(validation, self.tune, self.simulate)
        return Job(
            place, train.select(drawn), validation, self.tune, self.train, bench, self.opset, self.seed, trial_log
        )
