"""The claims about the predictor trained on the paper's traces, on the paper's own test pairs and in its own replay.

They need that predictor, which `make deepseek` leaves under build/, and the published pairs.
"""

from pathlib import Path

import numpy as np
import pytest

from moe_beyond.formats import importers
from moe_beyond.paper.scores import published_rows
from moe_beyond.predictor.graph_file import FORMAT_VERSION, STEPS, graph_file
from moe_beyond.predictor.recall import hits_at_k, most_probable
from moe_beyond.predictor.runtime import OnnxPredictor
from tests.phone_traces import shared

PREDICTOR = Path(__file__).parents[2] / "build" / "deepseek" / "models" / "predictor"


@pytest.fixture(scope="module")
def webglm():
    return importers.read("moe-beyond-csv", shared("webglm.tar.xz"))


@pytest.fixture(scope="module")
def logits(webglm):
    """Of the token step, and one layer ahead of the layer step."""
    if not all((PREDICTOR / graph_file(step)).exists() for step in STEPS):
        pytest.skip(f"{PREDICTOR} holds no predictor of format {FORMAT_VERSION}; `make deepseek` trains one")
    token_TLE, layers_HTLE = OnnxPredictor(PREDICTOR).both_logits(webglm)
    return {"token": token_TLE, "layer": layers_HTLE[0]}


@pytest.mark.parametrize(("step", "percent"), [("token", 67), ("layer", 77)])
def test_recall_over_all_rows(webglm, logits, step, percent):
    recall = hits_at_k(logits[step], webglm.experts_TLK).sum() / webglm.experts_TLK.size
    assert 100 * recall >= percent


def test_the_layer_step_beats_the_papers_predictor_in_the_papers_replay_and_moves_fewer_bytes(webglm, logits):
    """At a tenth of the model, paired by prompt."""
    named_TLK, theirs_TLK = most_probable(logits["layer"], webglm.metadata.top_k), np.asarray(webglm.predicted_TLK)
    row = published_rows(webglm, named_TLK, resamples=1000, seed=7, rival_TLM=theirs_TLK).row(0, named=True)
    assert row["capacity_experts"] == 166
    assert row["gain_low"] > 0
    assert row["mib_change_high"] < 0
