"""The paper's replay on the paper's traces: its hit rates, to 0.4 points and over ten seeds."""

import re
import tarfile

import numpy as np
import pytest

from moe_beyond.simulator.published_protocol import (
    BASELINE_PROMPTS,
    WARM_UP_TOKENS,
    crippled_moe_infinity,
    published_replay,
)
from moe_beyond.traces import importers
from tests.simulator.phone_traces import shared


@pytest.fixture(scope="module")
def webglm():
    return importers.read("moe-beyond-csv", shared("webglm.tar.xz"))


@pytest.fixture(scope="module")
def baseline(webglm, tmp_path_factory):
    # its authors average the first nine of their training prompts
    folder = tmp_path_factory.mktemp("puffin")
    with tarfile.open(shared("puffin.tar.xz")) as archive:
        numbered = {int(found[1]): file for file in archive if (found := re.search(r"prompt_(\d+)_", file.name))}
        archive.extractall(folder, [numbered[n] for n in sorted(numbered)[:BASELINE_PROMPTS]], filter="data")
    history = importers.read("moe-beyond-csv", folder)
    assert history.num_prompts == BASELINE_PROMPTS
    return crippled_moe_infinity(history, webglm.num_tokens)


@pytest.mark.parametrize(("capacity", "percent"), [(166, 72.8), (332, 81.6), (832, 91.0)])
def test_the_papers_predictor(webglm, capacity, percent):
    for seed in range(10):
        replay = published_replay(webglm, webglm.predicted_TLK, capacity, seed)
        assert 100 * replay.hit_rate == pytest.approx(percent, abs=0.4)


@pytest.mark.parametrize(("capacity", "percent"), [(166, 16.8), (332, 39.2), (832, 71.1)])
def test_the_papers_baseline(webglm, baseline, capacity, percent):
    for seed in range(10):
        replay = published_replay(webglm, baseline, capacity, seed)
        assert 100 * replay.hit_rate == pytest.approx(percent, abs=0.4)


def test_the_recall_of_the_papers_predictor_over_the_counted_rows(webglm):
    counted = webglm.positions_T >= WARM_UP_TOKENS
    actual, predicted = webglm.experts_TLK[counted], webglm.predicted_TLK[counted]
    found = (actual[..., :, None] == predicted[..., None, :]).any(axis=-1)
    assert 100 * found.mean() == pytest.approx(72.5, abs=0.05)


def test_predicting_every_expert_scores_everything(webglm):
    """Why this protocol cannot decide anything: it counts no bytes."""
    every = np.broadcast_to(np.arange(64), (webglm.num_tokens, 26, 64))
    assert published_replay(webglm, every, 166, seed=0).hit_rate == 1
