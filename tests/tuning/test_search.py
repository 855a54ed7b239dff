"""A search writes the same files with any number of workers, and whatever is killed."""

import json
from contextlib import nullcontext
from functools import partial

import psutil
import pytest
import yaml

from moe_beyond.errors import InputError
from moe_beyond.training.fit import fit
from moe_beyond.tuning import search as search_module
from moe_beyond.tuning.candidates import choices
from moe_beyond.tuning.choice import choose
from moe_beyond.tuning.optuna_study import StudyPlace
from moe_beyond.tuning.search import join, search
from moe_beyond.tuning.trial import measure
from tests.traces.refusals import refused
from tests.tuning.case import inputs_of, write_splits
from tests.tuning.several_workers import start, wait_for


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    write_splits(tmp_path)
    return tmp_path


def searched_here(inputs, scratch):
    """By this process alone, without an interruption."""
    place = StudyPlace.of(None, "study", scratch)
    study = place.open(create=True)
    study.enqueue(inputs.drawn.candidates, choices(inputs.tune.space))
    study.work(partial(measure, inputs, scratch))
    return choose(inputs.drawn, study.tried(), inputs.tune, inputs.bench.on_demand_ms())


@pytest.mark.timeout(600)
def test_a_search_of_two_workers_that_is_killed_ends_as_that_of_one(root, tmp_path):
    interrupted = start("tests/tuning/case.py", root, 2)
    wait_for(lambda: len(list(root.glob(".scratch/tune/*/candidate-*/last.ckpt"))) >= 2)
    # a worker, then all of it
    worker = next(child for child in psutil.Process(interrupted.pid).children() if "spawn_main" in str(child.cmdline()))
    for process in (worker, interrupted):
        process.kill()
        process.wait()
    assert not (root / "reports").exists()
    assert start("tests/tuning/case.py", root, 1).wait(300) == 0
    assert not list((root / ".scratch").iterdir())
    expected = searched_here(inputs_of(root), tmp_path)
    names = ("trials.csv", "epochs.csv", "best.yaml", "metrics.json")
    trials, epochs, best, metrics = ((root / "reports/tune" / name).read_text() for name in names)
    assert (trials, epochs) == (expected.trials.write_csv(), expected.epochs.write_csv())
    assert (yaml.safe_load(best), json.loads(metrics)) == (expected.best, expected.metrics())
    assert expected.trials["state"].to_list() == ["complete"] * 4
    assert len(expected.epochs) == 12


def test_candidates_without_a_worker_are_refused_and_only_a_shared_study_is_joined(root, tmp_path, monkeypatch):
    inputs, place = inputs_of(root), StudyPlace.of(None, "study", tmp_path)
    refused("a file is not shared; set OPTUNA_STORAGE", join, inputs, place, tmp_path)
    monkeypatch.setattr(search_module, "_workers", lambda *_: nullcontext(lambda: None))
    # the slowest is the first one
    refused("4 of 4 candidates lost their worker .*width 16, depth 1, heads 1", search, inputs, place, tmp_path)


def test_a_candidate_that_cannot_be_fitted_fails_with_the_reason(root, tmp_path, monkeypatch):
    def fit_small(train, validation, size, *args, **options):
        if size.width == 16:
            raise InputError("train: loss is nan at step 3")
        return fit(train, validation, size, *args, **options)

    monkeypatch.setattr("moe_beyond.tuning.trial.fit", fit_small)
    result = searched_here(inputs_of(root, epochs=1), tmp_path)
    assert result.best["width"] == 8
    failed = result.trials.filter(width=16).select("state", "reason")
    assert failed.unique().rows() == [("failed", "train: loss is nan at step 3")]


def test_inputs_that_decide_the_outcome_make_the_name_and_others_do_not(root):
    key = inputs_of(root).key()
    write_splits(root)
    assert inputs_of(root, workers=3).key() == key != inputs_of(root, epochs=4).key()
    with (root / "data/splits/validation/trace.json").open("a") as file:
        file.write("\n")
    assert inputs_of(root).key() != key
