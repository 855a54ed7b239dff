"""Workers share a study: each candidate is tried to its end once, whoever is killed."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy
from optuna.trial import TrialState

from moe_beyond.errors import InputError
from moe_beyond.tuning import study as study_module
from moe_beyond.tuning.study import MAX_DEATHS, Outcome, StudyPlace, patiently
from tests.tuning.several_workers import try_with_a_kill
from tests.tuning.worker import CANDIDATES, CHOICES, outcome_of

INDICES = list(range(len(CANDIDATES)))


@pytest.fixture
def place(tmp_path):
    return StudyPlace("study", f"sqlite:///{tmp_path}/study.db", grace_s=3)


def begun(place):
    study = place.open(create=True)
    study.enqueue(CANDIDATES, CHOICES)
    return study


def claimed(study):
    trial = study._claim()
    assert trial is not None
    return trial


def silence(place):
    """Let every heartbeat be of long ago, as those of a killed worker will be."""
    with sqlite3.connect(place.url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE trial_heartbeats SET heartbeat = '2001-01-01 00:00:00'")


@pytest.mark.timeout(300)
def test_two_workers_try_each_candidate_once_though_one_is_killed(place, tmp_path):
    try_with_a_kill(place, tmp_path)


def test_candidates_are_tried_in_their_order_and_come_back_as_they_were(place):
    seen = []

    def measure(index, candidate):
        seen.append((index, candidate))
        return outcome_of(index)

    study = begun(place)
    study.work(measure)
    assert seen == list(enumerate(CANDIDATES))
    assert place.open().tried() == {index: outcome_of(index) for index in INDICES}


def test_no_two_workers_claim_the_same_trial(place):
    begun(place)
    barrier = threading.Barrier(len(CANDIDATES))

    def claim():
        study = place.open()
        barrier.wait()
        return study._claim()

    with ThreadPoolExecutor(len(CANDIDATES)) as pool:
        trials = [future.result() for future in [pool.submit(claim) for _ in CANDIDATES]]
    assert sorted(trial.user_attrs["candidate"] for trial in trials if trial is not None) == INDICES


def test_a_search_that_is_started_again_tries_only_what_is_missing(place):
    study = begun(place)
    study._tell(claimed(study), outcome_of(0))
    study._tell(claimed(study), Outcome({}, [], "loss is nan"))
    claimed(study)  # and killed
    again, tried = begun(place), []

    def measure(index, candidate):
        tried.append(index)
        return outcome_of(index)

    again.work(measure)
    assert sorted(tried) == INDICES[2:]
    assert again.tried() == {index: outcome_of(index) for index in INDICES} | {1: Outcome({}, [], "loss is nan")}


def test_a_candidate_whose_worker_is_killed_each_time_waits_for_the_next_search(place):
    study = begun(place)
    for _ in range(MAX_DEATHS):
        assert claimed(study).user_attrs["candidate"] == 0
        for trial in study.study.get_trials(states=(TrialState.WAITING,)):
            study._tell(claimed(study), outcome_of(trial.user_attrs["candidate"]))
        silence(place)
    assert study._claim() is None
    assert not study._is_any_open()
    assert sorted(study.tried()) == INDICES[1:]
    assert claimed(begun(place)).user_attrs["candidate"] == 0


def test_a_worker_that_was_thought_dead_changes_nothing(place):
    study = begun(place)
    sleeper = claimed(study)
    silence(place)
    study.work(lambda index, candidate: outcome_of(index))
    study._tell(sleeper, Outcome({"ms_per_token": 99.0}, []))
    assert study.tried() == {index: outcome_of(index) for index in INDICES}


def test_a_study_that_is_not_begun_cannot_be_joined(place):
    with pytest.raises(InputError, match="study study: not begun; start the tune stage first"):
        place.open()


def test_calls_wait_for_a_storage_that_is_away_but_not_forever(monkeypatch):
    answers = [sqlalchemy.exc.OperationalError("select", {}, ConnectionError("refused"))] * 2

    def call():
        if answers:
            raise answers.pop()
        return "answer"

    monkeypatch.setattr(study_module, "PAUSE_S", 0.01)
    assert patiently(call) == "answer"
    monkeypatch.setattr(study_module, "PATIENCE_S", -1.0)
    answers.append(sqlalchemy.exc.OperationalError("select", {}, ConnectionError("refused")))
    with pytest.raises(InputError, match=r"OPTUNA_STORAGE: .* does not answer \(.*refused.*\); start it"):
        patiently(call)


def test_the_environment_names_the_storage_before_the_parameter(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://user:secret@host/db")
    place = StudyPlace.of(None, "study", tmp_path)
    assert (place.url, place.is_shared) == ("postgresql+psycopg2://user:secret@host/db", True)
    monkeypatch.setenv("OPTUNA_STORAGE", "sqlite:///user:secret@x.db")
    with pytest.raises(InputError, match="no PostgreSQL address") as caught:
        StudyPlace.of(None, "study", tmp_path)
    assert "secret" not in str(caught.value)
    monkeypatch.delenv("OPTUNA_STORAGE")
    assert not StudyPlace.of(None, "study", tmp_path).is_shared


def test_any_folder_can_hold_a_study(tmp_path, monkeypatch):
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    folder = tmp_path / "a {odd}?#% name"
    folder.mkdir()
    begun(StudyPlace.of(None, "study", folder))
    assert (folder / "study.db").exists()
