import pytest

from moe_beyond.predictor.latency import Latency
from moe_beyond.tuning.candidates import Drawn
from moe_beyond.tuning.choice import choose
from moe_beyond.tuning.optuna_study import Outcome
from moe_beyond.tuning.settings import TuneSettings
from tests.traces.refusals import refused

WIDTHS = (64, 96, 128, 192)
DRAWN = Drawn(tuple({"width": width} for width in WIDTHS), tuple(Latency(w / 100, 0.1, 0.0) for w in WIDTHS), 5)
FAILED = Outcome({}, [], "train: loss is nan at step 3")


def outcome(ms, parameters):
    numbers = {"recall_at_k": 0.5, "ms_per_token": ms, "parameters": parameters, "hit_rate": 0.25, "use": "both_steps"}
    return Outcome(numbers, [{"epoch": 0, "train_loss": ms}, {"epoch": 1, "train_loss": ms / 2}])


OUTCOMES = {0: outcome(41.0, 100), 1: outcome(40.0, 300), 2: FAILED, 3: outcome(40.5, 400)}


def choice(outcomes):
    # workers end in any order
    return choose(DRAWN, dict(reversed(outcomes.items())), TuneSettings(), 50.0)


def test_the_rule_takes_the_least_time_per_token_and_says_why_of_each():
    result = choice(OUTCOMES)
    assert result.best == {"width": 96}
    more, failed = "{} ms per token more than trial 1", FAILED.reason
    least = "least time per token on phone_ufs at capacity 0.1: 40.000 ms (LRU without a predictor 50.000 ms)"
    assert result.trials.select("trial", "state", "chosen", "token_step_ms", "ms_per_token", "reason").rows() == [
        (0, "complete", False, 0.64, 41.0, more.format("1.000")),
        (1, "complete", True, 0.96, 40.0, least),
        (2, "failed", False, 1.28, None, failed),
        (3, "complete", False, 1.92, 40.5, more.format("0.500")),
    ]
    assert result.epochs.select("trial", "epoch").rows() == [(i, epoch) for i in (0, 1, 3) for epoch in (0, 1)]
    metrics = result.metrics()
    assert (metrics["trials"], metrics["failed"], metrics["infeasible"]) == (4, 1, 5)
    assert (metrics["chosen"]["trial"], metrics["chosen"]["width"], metrics["chosen"]["hit_rate"]) == (1, 96, 0.25)


@pytest.mark.parametrize(("parameters", "best"), [((200, 100, 300), 96), ((100, 100, 300), 64), ((300, 200, 100), 192)])
def test_equal_times_go_to_the_smaller_and_then_to_the_first(parameters, best):
    equal = dict(zip((0, 1, 3), (outcome(40.0, number) for number in parameters), strict=True))
    assert choice(OUTCOMES | equal).best == {"width": best}


def test_a_search_in_which_nothing_could_be_measured_says_why():
    message = "no candidate could be measured; the first one: train: loss is nan at step 3"
    refused(message, choice, dict.fromkeys(range(4), FAILED))
