"""What lossy policies choose while a model runs, each step worked out by hand."""

import numpy as np
import pytest

from moe_beyond.errors import InputError
from moe_beyond.simulator.engine.online import Choice, Routing, Step
from moe_beyond.simulator.policies.online_choices import OnlineCachePrior, OnlinePreGated, OnlinePreMoe
from moe_beyond.simulator.policies.prompt_sets import PreMoe


def routing(layer, run_router=None, members=(0, 1), decodes=True, experts=4):
    ids, shares = np.array([[member % experts for member in members]]), np.full(2, 0.5, np.float32)
    return Routing(layer, layer, decodes, np.array(members, np.int32), shares, ids, run_router=run_router)


class Router:
    """Two best of fixed logits, weighed by them; remembers each run: its layer and the changed logits."""

    def __init__(self, *logits):
        self.logits, self.runs = np.array([logits], np.float32), []

    def __call__(self, layer, change=None):
        changed = self.logits if change is None else change(self.logits)
        self.runs.append((layer, changed[0].tolist()))
        ids = np.argsort(-changed, axis=1, kind="stable")[:, :2]
        return Choice(ids, np.take_along_axis(self.logits, ids, axis=1))


def test_cache_prior_raises_residents_and_the_best_by_the_mean_range():
    online = OnlineCachePrior(num_layers=1, prior=0.5, always_kept=1)
    first, second = Router(4, 3, 2, 0), Router(4, 3.5, 3, 2)
    resident = np.array([False, False, True, False])
    # D is 4, then the mean of 4 and 2
    chosen = online.choose(routing(0, first), resident)
    assert first.runs == [(0, [6, 3, 4, 0])]
    assert chosen.experts_TK.tolist() == [[0, 2]]
    assert chosen.weights_TK.tolist() == [[4, 2]]
    online.choose(routing(0, second), resident)
    assert second.runs == [(0, [5.5, 3.5, 4.5, 2])]


def test_pre_gated_computes_with_the_choice_for_the_layer_before():
    online = OnlinePreGated(num_layers=2, num_experts=4)
    guess, own = Router(0, 1, 2, 3), Router(3, 2, 1, 0)
    assert online.choose(routing(0, guess), np.zeros(4, bool)) is None
    (request,) = online.routed(routing(0, guess))
    assert (request.target, request.experts_W.tolist()) == (1, [7, 6])
    assert online.choose(routing(1, own), np.zeros(4, bool)).weights_TK.tolist() == [[3, 2]]
    assert not own.runs
    assert online.routed(routing(1, own)) == []
    # the next token's first layer is its own again
    assert online.choose(routing(0, guess), np.zeros(4, bool)) is None


def test_pre_moe_runs_on_the_nearest_patterns_subset_once_the_prefill_is_routed():
    patterns = np.array([[0.6, 0.4, 0, 0], [0, 0, 0.4, 0.6]], np.float32)
    popularity = np.full(4, 0.25, np.float32)
    online = OnlinePreMoe(PreMoe(patterns, popularity), num_layers=1, kept=2, opening_steps=8)
    assert online.begin(Step(0, 0, False, True, ("a", "b")))[0] is popularity
    prefill = routing(0, decodes=False)
    assert online.keep(prefill) is None
    online.end(Step(0, 0, False, True, ("a", "b")), np.array([[[2, 3]], [[3, 1]]]))
    assert online.begin(Step(1, 0, True, False, ("c",)))[0].tolist() == patterns[1].tolist()
    router = Router(4, 3, 2, 1)
    assert online.choose(routing(0, router), np.zeros(4, bool)).experts_TK.tolist() == [[2, 3]]
    # stepped by a trace: what is not in the subset is skipped
    assert online.choose(routing(0), np.zeros(4, bool)) is None
    assert online.keep(routing(0, members=(0, 3))).tolist() == [False, True]
    online.begin(Step(2, 1, False, True, ("d",)))
    assert online.keep(prefill) is None


@pytest.mark.parametrize("online", [OnlineCachePrior(2, 0.2, 2), OnlinePreGated(2, 4)])
def test_what_runs_routers_says_that_a_trace_has_none(online):
    with pytest.raises(InputError, match="runs the model's routers"):
        online.choose(routing(0), np.zeros(4, bool))
        online.routed(routing(0))
