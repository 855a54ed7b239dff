"""Passwords are masked by the form of an address, by the name of a parameter, and by the environment."""

import subprocess
import sys

import pytest

from moe_beyond.errors import InputError, line_of, reason_of
from moe_beyond.masking import has_password, masked

SECRET = "planted-1"  # noqa: S105 - no secret
ADDRESSES = [
    "http://user:{}@host:5000/#/runs",
    "postgresql+psycopg2://user:{}@127.0.0.1:5442/optuna",
    "failed for https://{}@host, url: /api",
    "http://user:a/{}@host",
    "http://user:a@{}@host",
    "http://user:a:{}@host",
    "'http://user:{}@host' and \"ssh://user:{}@other/path\"",
    "https://host/path?sig={}&x=1",
    "http://host/?TOKEN={}",
    "postgresql://host/db?sslpassword={}",
    "azure://container?account_key=1&client_secret={}",
    "PGPASSWORD={} psql",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_shown_without_its_password(address):
    shown = masked(address.format(*[SECRET] * 2))
    assert SECRET not in shown
    assert "1" not in shown.replace("127.0.0.1", "").replace("=1", "") or "host" in shown
    assert masked(shown) == shown


HARMLESS = [
    "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning",
    "http://host:8080/a@b",
    "sqlite:////tmp/a@b/mlflow.db",
    "models:/name@champion",
    "hf://datasets/owner/name@main",
    "reference.tokens=20000, token_step_ms=0.5, design=3, key=ab",
    "a line\nwith  blanks\tand http://host/path\n",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text, monkeypatch):
    monkeypatch.setenv("SHORT_PASSWORD", "a")
    assert masked(text) == text
    assert not has_password(text)


def test_a_secret_of_the_environment_is_masked_wherever_it_stands_and_however_it_is_escaped(monkeypatch):
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://user:pl%40nted%2Fone@host/db")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tok/en planted")
    for text in ("pl%40nted%2Fone", "no host pl@nted/one", "Bearer tok/en planted", "?t=tok%2Fen%20planted"):
        assert masked(text) in ("***", "no host ***", "Bearer ***", "?t=***")


def test_errors_say_none():
    address = f"http://user:{SECRET}@host/"
    for said in (line_of(InputError(address)), line_of(ValueError(address)), reason_of(OSError(address))):
        assert SECRET not in said
        assert "host" in said


PROGRAM = f"""
import logging, sys, warnings
from moe_beyond.masking import mask_output
mask_output()
address = "http://user:{SECRET}@host/"
print(address)
logging.basicConfig(level=logging.WARNING)
logging.warning("not at %s", address)
warnings.warn(address)
print(address, file=sys.stderr)
raise RuntimeError(address)
"""


def test_nothing_is_printed_logged_warned_of_or_raised_unmasked():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == "http://host/\n"
    # the line, the log, the warning and the traceback; Python shows the source of a traceback's line from files alone
    assert done.stderr.count("http://host/") >= 4
    assert "RuntimeError: http://host/" in done.stderr
    assert SECRET not in done.stderr


def test_output_of_other_programs_is_masked_line_by_line():
    command = [sys.executable, "-m", "moe_beyond.masking"]
    text = f"401, url='http://host/x?token={SECRET}'\n".encode() + b"\xff\n"
    done = subprocess.run(command, input=text, capture_output=True, check=True)
    assert done.stdout.decode() == "401, url='http://host/x?token='\n\ufffd\n"
