"""Workers share a study: each candidate is tried to its end once, whichever worker is killed."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import Mock

import pytest
import sqlalchemy
from optuna.trial import TrialState
from pydantic import ValidationError

from moe_beyond.errors import InputError
from moe_beyond.tuning import optuna_study as study_module
from moe_beyond.tuning.optuna_study import MAX_DEATHS, Outcome, StudyPlace, patiently
from moe_beyond.tuning.settings import TuneSettings
from tests.traces.refusals import refused
from tests.tuning.several_workers import CANDIDATES, CHOICES, OUTCOMES, try_with_a_kill

ODD = "an {odd}?#% name"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    (tmp_path / ODD).mkdir()
    return replace(StudyPlace.of(None, "study", tmp_path / ODD), grace_s=3)


def begun(place):
    study = place.open(create=True)
    study.enqueue(CANDIDATES, CHOICES)
    return study


def silence(tmp_path):
    """Date every heartbeat far back, as if all workers had been killed."""
    with sqlite3.connect(tmp_path / ODD / "study.db") as connection:
        connection.execute("UPDATE trial_heartbeats SET heartbeat = '2001-01-01 00:00:00'")


@pytest.mark.timeout(300)
def test_two_workers_try_each_candidate_once_though_one_is_killed(place, tmp_path):
    try_with_a_kill(place, tmp_path / "log")


def test_no_two_workers_claim_the_same_trial(place):
    begun(place)
    barrier = threading.Barrier(len(CANDIDATES))

    def claim(_):
        study = place.open()
        barrier.wait()
        return study._claim().user_attrs["candidate"]

    with ThreadPoolExecutor(len(CANDIDATES)) as pool:
        assert sorted(pool.map(claim, CANDIDATES)) == sorted(OUTCOMES)


def test_a_search_that_is_started_again_tries_only_what_is_missing(place):
    refused("study study: not begun; start the tune stage first", place.open)
    study, failed = begun(place), Outcome({}, [], "loss is nan")
    for outcome in (OUTCOMES[0], failed):
        study._tell(study._claim(), outcome)
    study._claim()  # and killed
    measure = Mock(side_effect=lambda index, _: OUTCOMES[index])
    begun(place).work(measure)
    assert sorted(call.args for call in measure.call_args_list) == list(enumerate(CANDIDATES))[2:]
    assert place.open().tried() == OUTCOMES | {1: failed}


def test_a_candidate_whose_worker_is_killed_each_time_waits_for_the_next_search(place, tmp_path):
    study = begun(place)
    for _ in range(MAX_DEATHS):
        assert study._claim().user_attrs["candidate"] == 0
        for trial in study.study.get_trials(states=(TrialState.WAITING,)):
            study._tell(study._claim(), OUTCOMES[trial.user_attrs["candidate"]])
        silence(tmp_path)
    assert study._claim() is None
    assert not study._is_any_open()
    assert sorted(study.tried()) == sorted(OUTCOMES)[1:]
    assert begun(place)._claim().user_attrs["candidate"] == 0


def test_a_worker_without_heartbeat_that_comes_back_changes_nothing(place, tmp_path):
    study = begun(place)
    sleeper = study._claim()
    silence(tmp_path)
    study.work(lambda index, _: OUTCOMES[index])
    study._tell(sleeper, Outcome({"ms_per_token": 99.0}, []))
    assert study.tried() == OUTCOMES


def test_calls_wait_for_a_storage_that_is_away_but_not_forever(monkeypatch):
    error = sqlalchemy.exc.OperationalError("select", {}, ConnectionError("refused"))
    call = Mock(side_effect=[error] * 3 + ["result", error])
    monkeypatch.setattr(study_module, "PAUSE_S", 0.01)
    assert patiently(call) == "result"
    monkeypatch.setattr(study_module, "PATIENCE_S", -1.0)
    refused(r"tune.storage: it does not answer \(.*refused.*\); start it", patiently, call)


def test_the_environment_names_the_storage_before_the_parameter(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://user:secret@host/db")
    place = StudyPlace.of(None, "study", tmp_path)
    assert (place.url, place.is_shared) == ("postgresql+psycopg2://user:secret@host/db", True)


UNUSABLE = [
    ("sqlite:///user:planted@x.db", "OPTUNA_STORAGE: not an address that begins with postgresql; correct or unset it"),
    ("postgresql://user:pl@nted@127.0.0.1:9/db", "cannot be read; in a password write %40 for @, %2F for /"),
    ("postgresql://127.0.0.1:planted/db", "cannot be read; in a password write %40 for @, %2F for /"),
    ("postgresql:planted", "cannot be read; in a password write %40 for @, %2F for /"),
    ("postgresql+planted://host/db", "tune.storage: Can't load plugin: .*; correct its address"),
    ("postgresql://user:planted@127.0.0.1:9/db?unknown=1", "tune.storage: invalid dsn: .*; correct its address"),
    ("postgresql://user:planted@127.0.0.1:9/db", "tune.storage: it does not answer .*; start it"),
]


@pytest.mark.parametrize(("address", "message"), UNUSABLE)
def test_an_address_that_cannot_be_used_is_one_line_without_its_password(tmp_path, monkeypatch, address, message):
    monkeypatch.setenv("OPTUNA_STORAGE", address)
    monkeypatch.setattr(study_module, "PATIENCE_S", -1.0)
    with pytest.raises(InputError, match=message) as caught:
        StudyPlace.of(None, "study", tmp_path).open(create=True)
    assert not any(part in str(caught.value) for part in (":planted", "nted@"))
    with pytest.raises(ValidationError, match="a password belongs in the variable OPTUNA_STORAGE"):
        TuneSettings(storage="postgresql://user:planted@host/db")
