"""The same commit and parameters give the same traces and splits to the bit, and the same metrics on CPU."""

import json

import pytest
import torch
import yaml

from moe_beyond.training.fit import fit
from moe_beyond.training.size import Size
from tests.predictor.small import SETTINGS
from tests.test_end_to_end import ROOT, TINY, call
from tests.traces_of_chance import chance_trace

TOLERANCE = 1e-6
"""Of a metric, between two runs on one machine with one thread."""


def test_a_fit_comes_out_the_same_to_the_bit(tmp_path):
    train, validation = chance_trace(20, seed=1, name="t"), chance_trace(5, seed=2, name="v")
    first, second = (
        fit(train, validation, Size(16, 1, 2), SETTINGS, epochs=2, seed=3, scratch=tmp_path / name) for name in "ab"
    )
    assert first.history == second.history
    states = first.checkpoint.network.state_dict(), second.checkpoint.network.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_clones_make_the_same_traces_and_splits_and_metrics(tmp_path):
    # one candidate: which of several wins depends on their measured latency too
    only = {"tune.trials": 1, "tune.space.width": "[16]", "tune.space.train": "{}"}
    overrides = [word for key, value in (TINY | only).items() for word in ("-S", f"{key}={value}")]
    locks, metrics = [], []
    for name in "ab":
        clone = tmp_path / name
        call(ROOT, "git", "clone", "-q", str(ROOT), str(clone))
        # the committed lock file names outs of later stages, which are not in this clone's cache
        (clone / "dvc.lock").unlink()
        call(clone, "dvc", "exp", "run", *overrides, "train")
        locks.append(yaml.safe_load((clone / "dvc.lock").read_text())["stages"])
        metrics.append(json.loads((clone / "reports/train/metrics.json").read_text()))
    for stage, path in (
        ("extract", "data/traces"),
        ("split", "data/splits/train"),
        ("split", "data/splits/prompts.csv"),
    ):
        digests = {out["md5"] for lock in locks for out in lock[stage]["outs"] if out["path"] == path}
        assert len(digests) == 1, path
    assert metrics[0] == pytest.approx(metrics[1], rel=TOLERANCE)
