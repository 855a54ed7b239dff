from contextlib import contextmanager

import polars as pl
import pytest

from moe_beyond.errors import InputError
from moe_beyond.predictor.settings import SearchSpace, TuneSettings
from moe_beyond.training import Size
from moe_beyond.tuning import choose, search
from tests.predictor.small import SETTINGS
from tests.traces_of_chance import chance_trace


def trials(*rows):
    names = ("trial", "width", "depth", "heads", "recall_at_k", "latency_ms", "on_front")
    return pl.DataFrame([dict(zip(names, row, strict=True)) for row in rows])


def test_the_rule_takes_the_fastest_within_the_tolerance():
    table = trials((0, 64, 1, 2, 0.60, 0.1, True), (1, 96, 1, 2, 0.698, 0.2, True), (2, 128, 2, 4, 0.70, 0.4, True))
    assert choose(table, TuneSettings(recall_tolerance=0.005)).best == Size(96, 1, 2)
    assert choose(table, TuneSettings(recall_tolerance=0.0)).best == Size(128, 2, 4)
    assert choose(table, TuneSettings(recall_tolerance=0.2)).best == Size(64, 1, 2)
    # best means best of those that are fast enough
    assert choose(table, TuneSettings(recall_tolerance=0.0, max_latency_ms=0.3)).best == Size(96, 1, 2)
    assert choose(table, TuneSettings()).trials["chosen"].to_list() == [False, True, False]


def test_a_latency_that_no_size_meets_names_the_parameter():
    with pytest.raises(InputError, match=r"tune.max_latency_ms: 0.05 ms, but the fastest size takes 0.100 ms"):
        choose(trials((0, 64, 1, 2, 0.6, 0.1, True)), TuneSettings(max_latency_ms=0.05))


class KilledError(Exception):
    pass


def run(tmp_path, trial_log, count=4):
    settings = TuneSettings(
        trials=count,
        epochs=1,
        max_prompts=12,
        space=SearchSpace(width=(8, 16), depth=(1,), heads=(1, 2)),
        latency_repeats=10,
        max_latency_ms=1000,
    )
    train, validation = chance_trace(20, seed=1, name="t"), chance_trace(5, seed=2, name="v")
    return search(train, validation, settings, SETTINGS, opset=20, seed=3, scratch=tmp_path, trial_log=trial_log)


def test_a_study_records_each_trial_and_resumes_after_an_interruption(tmp_path):
    logged = []

    @contextmanager
    def trial_log(name, params):
        logged.append((name, params))
        if len(logged) == 2 and not interrupted:
            interrupted.append(name)
            raise KilledError
        yield lambda metrics, step: None

    interrupted = []
    with pytest.raises(KilledError):
        run(tmp_path, trial_log)
    result = run(tmp_path, trial_log)
    assert result.trials.height == 4
    assert result.trials["chosen"].sum() == 1
    assert result.trials.filter(pl.col("chosen"))["on_front"].all()
    assert result.metrics()["trials"] == 4
    # the space has four sizes: each was trained once, however often the sampler repeated itself
    sizes = [tuple(params.values()) for name, params in logged if name not in interrupted]
    assert len(sizes) == len(set(sizes))
