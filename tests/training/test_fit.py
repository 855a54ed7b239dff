from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from moe_beyond.errors import InputError
from moe_beyond.evaluation.scores import score
from moe_beyond.predictor.baselines import Popularity
from moe_beyond.predictor.checkpoint import load_checkpoint, save_checkpoint
from moe_beyond.training.fit import Size, fit, read_choice
from moe_beyond.training.settings import TrainSettings
from tests.predictor.small import SETTINGS
from tests.traces_of_chance import chance_trace


def test_training_beats_popularity_on_prompts_it_did_not_see(fitted, validation_trace, train_trace):
    popularity = score(Popularity.fit(train_trace), validation_trace).mean() / 2
    assert fitted.best_recall > popularity + 0.2
    assert len(fitted.history) == 6
    assert fitted.metrics()["validation_recall_at_k"] == fitted.best_recall


def test_same_seed_same_weights(train_trace, validation_trace, tmp_path):
    fits = [
        fit(train_trace, validation_trace, Size(16, 1, 2), SETTINGS, epochs=2, seed=5, scratch=tmp_path / name)
        for name in ("a", "b")
    ]
    first, second = (result.checkpoint.network.state_dict() for result in fits)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert fits[0].history == fits[1].history


def test_an_interrupted_fit_goes_on_and_keeps_its_history(train_trace, validation_trace, tmp_path):
    class StopError(Exception):
        pass

    def interrupt(metrics, step):
        seen.append(step)
        if len(seen) == 3:
            raise StopError

    seen = []
    run = {"epochs": 4, "seed": 5, "scratch": tmp_path}
    with pytest.raises(StopError):
        fit(train_trace, validation_trace, Size(16, 1, 2), SETTINGS, log_step=interrupt, **run)
    assert (tmp_path / "last.ckpt").exists()
    resumed = fit(train_trace, validation_trace, Size(16, 1, 2), SETTINGS, **run)
    steps = [row["step"] for row in resumed.history]
    assert [row["epoch"] for row in resumed.history] == [0, 1, 2, 3]
    assert steps == sorted(steps)


def test_teachers_are_fitted_first_and_resumed_and_only_the_student_is_kept(train_trace, validation_trace, tmp_path):
    class StopError(Exception):
        pass

    def stop(metrics, step):
        raise StopError

    settings = SETTINGS.model_copy(update={"teachers": 2, "teacher_weight": 1.0})
    run: dict[str, Any] = {"epochs": 3, "seed": 5}
    with pytest.raises(StopError):
        # what is logged is the student's alone
        fit(train_trace, validation_trace, Size(16, 1, 2), settings, scratch=tmp_path, log_step=stop, **run)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("teacher-*/best*.ckpt")}
    assert sorted(path.parent.name for path in before) == ["teacher-1", "teacher-2"]
    student = fit(train_trace, validation_trace, Size(16, 1, 2), settings, scratch=tmp_path, **run)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    alone = fit(train_trace, validation_trace, Size(16, 1, 2), SETTINGS, scratch=tmp_path / "alone", **run)
    taught, untaught = (result.checkpoint.network.state_dict() for result in (student, alone))
    assert taught.keys() == untaught.keys()
    assert not all(torch.equal(taught[name], untaught[name]) for name in taught)
    assert student.best_recall > alone.history[0]["validation_recall_at_k"]


def test_teachers_without_probabilities_are_refused():
    with pytest.raises(ValidationError, match="teachers need the loss bce, not softmax"):
        TrainSettings(teachers=1, loss="softmax")


def test_splits_that_share_a_prompt_are_refused(train_trace, tmp_path):
    with pytest.raises(InputError, match="'train0' is in two splits"):
        fit(train_trace, train_trace, Size(16, 1, 2), SETTINGS, epochs=1, seed=0, scratch=tmp_path)


def test_a_validation_trace_of_another_model_is_refused(train_trace, tmp_path):
    other = chance_trace(4, num_layers=2, name="v")
    with pytest.raises(InputError, match="layer_numbers"):
        fit(train_trace, other, Size(16, 1, 2), SETTINGS, epochs=1, seed=0, scratch=tmp_path)


def test_a_loss_that_is_not_a_number_stops_with_the_step(train_trace, validation_trace, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "moe_beyond.training.module.PredictorModule._loss", lambda self, logits, *_: logits.sum() * float("nan")
    )
    with pytest.raises(InputError, match="loss is nan at step 0"):
        fit(train_trace, validation_trace, Size(16, 1, 2), SETTINGS, epochs=1, seed=0, scratch=tmp_path)


def test_checkpoints_come_back_as_they_were(fitted, tmp_path):
    save_checkpoint(fitted.checkpoint, tmp_path / "checkpoint")
    loaded = load_checkpoint(tmp_path / "checkpoint")
    before, after = fitted.checkpoint.network.state_dict(), loaded.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert loaded.encoder == fitted.checkpoint.encoder
    assert loaded.trained_on == fitted.checkpoint.trained_on
    with pytest.raises(InputError, match="run the train stage first"):
        load_checkpoint(tmp_path / "nothing")


def test_what_the_search_chose_is_a_size_and_parameters_of_the_fit(tmp_path):
    best = tmp_path / "best.yaml"
    best.write_text("width: 8\ndepth: 1\nheads: 2\nwindow: 16\n")
    assert read_choice(best, SETTINGS) == (Size(8, 1, 2), SETTINGS.model_copy(update={"window": 16}))
    best.write_text("width: 8\n")
    with pytest.raises(InputError, match="run the tune stage first"):
        read_choice(best, SETTINGS)
    best.write_text("width: 8\ndepth: 1\nheads: 2\nwinow: 16\n")
    with pytest.raises(InputError, match=r"best.yaml: train.winow: .*; run the tune stage again"):
        read_choice(best, SETTINGS)
    with pytest.raises(InputError, match="run the tune stage first"):
        read_choice(tmp_path / "none.yaml", SETTINGS)


def test_epochs_end_early_without_progress(train_trace, validation_trace, tmp_path):
    settings = SETTINGS.model_copy(update={"learning_rate": 1e-12, "patience": 2, "warmup_fraction": 0.0})
    result = fit(train_trace, validation_trace, Size(16, 1, 2), settings, epochs=10, seed=0, scratch=tmp_path)
    assert len(result.history) == 3


def test_replacing_texts_by_ids_still_trains(train_trace, validation_trace, tmp_path):
    train, validation = (replace(trace, token_texts=None) for trace in (train_trace, validation_trace))
    result = fit(train, validation, Size(16, 1, 2), SETTINGS, epochs=4, seed=0, scratch=tmp_path)
    assert result.best_recall > 0.4


@pytest.mark.parametrize(
    "change",
    [{"precision": "bf16-mixed"}, {"loss": "softmax"}, {"loss": "ranking"}, {"horizon": 3, "reach": 1}],
    ids=str,
)
def test_every_precision_loss_and_horizon_learns(train_trace, validation_trace, tmp_path, change):
    settings = SETTINGS.model_copy(update=change)
    result = fit(train_trace, validation_trace, Size(16, 1, 2), settings, epochs=5, seed=0, scratch=tmp_path)
    first, last = result.history[0], result.history[-1]
    assert last["validation_recall_at_k"] > first["validation_recall_at_k"] + 0.05
    assert all(weights.dtype == torch.float32 for weights in result.checkpoint.layer_step.state_dict().values())


def test_the_layer_step_learns_what_the_token_step_cannot_know(tmp_path):
    # layer 0 is drawn by chance, and every later layer repeats it
    rng = np.random.default_rng(5)
    traces = []
    for name in ("train", "validation"):
        trace = chance_trace(8, name=name, num_layers=3)
        first_TK = rng.random((trace.num_tokens, trace.metadata.num_experts)).argsort(1)[:, : trace.metadata.top_k]
        experts_TLK = np.repeat(first_TK[:, None].astype(trace.experts_TLK.dtype), 3, axis=1)
        traces.append(replace(trace, experts_TLK=experts_TLK))
    settings = SETTINGS.model_copy(update={"learning_rate": 0.03, "horizon": 2, "patience": 40})
    result = fit(traces[0], traces[1], Size(16, 1, 2), settings, epochs=40, seed=0, scratch=tmp_path)
    best = result.metrics()
    # one of three layers ahead of which nothing is known; two of three at two layers ahead
    assert best["validation_recall_at_k_ahead_1"] > best["validation_recall_at_k"] + 0.3
    assert best["validation_recall_at_k_ahead_2"] > best["validation_recall_at_k"] + 0.1
