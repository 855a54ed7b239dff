import itertools
from functools import partial

import pytest
import torch

from moe_beyond.evaluation.scores import score
from moe_beyond.network.checkpoint import load_checkpoint, save_checkpoint
from moe_beyond.predictor.baselines import Popularity
from moe_beyond.training.fit import fit
from moe_beyond.training.module import PredictorModule
from moe_beyond.training.size import Size, read_choice
from tests.predictor.small import SETTINGS
from tests.traces.refusals import refused
from tests.traces_of_chance import chance_trace


def small_fit(train, validation, scratch, epochs=1, **changes):
    settings = SETTINGS.model_copy(update=changes)
    return fit(train, validation, Size(16, 1, 2), settings, epochs=epochs, seed=5, scratch=scratch)


def same_weights(one, other):
    for step in ("network", "layer_step"):
        before, after = (getattr(checkpoint, step).state_dict() for checkpoint in (one, other))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_training_beats_popularity_on_prompts_it_did_not_see(fitted, validation_trace, train_trace):
    popularity = score(Popularity.fit(train_trace), validation_trace).mean() / 2
    assert fitted.metrics()["validation_recall_at_k"] > popularity + 0.2
    assert len(fitted.history) == 6


EARLY = {"learning_rate": 1e-12, "patience": 2}


@pytest.mark.parametrize("stop", [("on_train_batch_end", 25), ("on_fit_end", 1)])
@pytest.mark.parametrize(("change", "epochs"), [({"dropout": 0.2}, 4), (EARLY, 3)], ids=["all", "early"])
def test_an_interrupted_fit_ends_as_if_it_had_not_been(tmp_path, monkeypatch, stop, change, epochs):
    train, validation = chance_trace(40, seed=1, name="t"), chance_trace(10, seed=2, name="v")
    run = partial(small_fit, train, validation, epochs=4, **change)
    whole, calls, (hook, stop_at) = run(tmp_path / "whole"), itertools.count(1), stop

    def interrupt(*_):
        if next(calls) == stop_at:
            raise SystemError("a kill, as far as a fit can see")

    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(PredictorModule, hook, interrupt)
        run(tmp_path / "stopped")
    resumed = run(tmp_path / "stopped")
    assert resumed.history == whole.history
    assert len(whole.history) == epochs
    same_weights(resumed.checkpoint, whole.checkpoint)


@pytest.mark.parametrize("left", [0.0, 0.1, 0.9])
def test_a_checkpoint_that_a_kill_cut_short_changes_nothing(tmp_path, left):
    train, validation = chance_trace(40, seed=1, name="t"), chance_trace(10, seed=2, name="v")
    run = partial(small_fit, train, validation, epochs=2)
    whole = run(tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    for name in ("last.ckpt", "best.ckpt"):
        content = (tmp_path / "whole" / name).read_bytes()
        (tmp_path / "cut" / name).write_bytes(content[: int(left * len(content))])
    again = run(tmp_path / "cut")
    assert again.history == whole.history
    same_weights(again.checkpoint, whole.checkpoint)


def test_splits_that_share_a_prompt_or_are_of_two_models_are_refused(train_trace, tmp_path):
    refused("'train0' is in two splits", small_fit, train_trace, train_trace, tmp_path)
    refused("layer_numbers", small_fit, train_trace, chance_trace(4, num_layers=2, name="v"), tmp_path)


def test_a_loss_that_is_not_a_number_stops_with_the_step(train_trace, validation_trace, tmp_path, monkeypatch):
    monkeypatch.setattr(PredictorModule, "_loss", lambda self, logits, *_: logits.sum() * float("nan"))
    refused("loss is nan at step 0", small_fit, train_trace, validation_trace, tmp_path)


def test_checkpoints_come_back_as_they_were(fitted, tmp_path):
    save_checkpoint(fitted.checkpoint, tmp_path / "checkpoint")
    loaded = load_checkpoint(tmp_path / "checkpoint")
    same_weights(fitted.checkpoint, loaded)
    assert (loaded.encoder, loaded.trained_on) == (fitted.checkpoint.encoder, fitted.checkpoint.trained_on)
    refused("run the train stage first", load_checkpoint, tmp_path / "nothing")


def test_what_the_search_chose_is_a_size_and_parameters_of_the_fit(tmp_path):
    best = tmp_path / "best.yaml"
    best.write_text("width: 8\ndepth: 1\nheads: 2\nwindow: 16\n")
    assert read_choice(best, SETTINGS) == (Size(8, 1, 2), SETTINGS.model_copy(update={"window": 16}))
    best.write_text("{width: 8, depth: 1, heads: 2, winow: 16}")
    refused(r"best.yaml: train.winow: .*; run the tune stage again", read_choice, best, SETTINGS)
    best.write_text("width: 8\n")
    for path in (best, tmp_path / "none.yaml"):
        refused("run the tune stage first", read_choice, path, SETTINGS)


KINDS = [{"precision": "bf16-mixed"}, {"loss": "softmax"}, {"loss": "ranking"}, {"horizon": 3, "reach": 1}]


@pytest.mark.parametrize("change", KINDS, ids=str)
def test_every_precision_loss_and_horizon_learns(train_trace, validation_trace, tmp_path, change):
    result = small_fit(train_trace, validation_trace, tmp_path, epochs=5, **change)
    first, last = result.history[0], result.history[-1]
    assert last["validation_recall_at_k"] > first["validation_recall_at_k"] + 0.05
    assert all(weights.dtype == torch.float32 for weights in result.checkpoint.layer_step.state_dict().values())


def test_the_layer_step_learns_what_the_token_step_cannot_know(tmp_path):
    # layer 0 is drawn by chance, and every later layer repeats it
    traces = [chance_trace(8, name=name, lexical=0.0, seed=seed) for name, seed in (("train", 0), ("validation", 1))]
    for trace in traces:
        trace.experts_TLK[:] = trace.experts_TLK[:, :1]
    best = small_fit(*traces, tmp_path, epochs=40, learning_rate=0.03, horizon=2, patience=40).metrics()
    # one of three layers ahead of which nothing is known; two of three at two layers ahead
    assert best["validation_recall_at_k_ahead_1"] > best["validation_recall_at_k"] + 0.3
    assert best["validation_recall_at_k_ahead_2"] > best["validation_recall_at_k"] + 0.1
