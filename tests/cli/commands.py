"""Runs commands as a shell does, and reads what they print."""

import json

from typer.testing import CliRunner

from moe_beyond.cli import app


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def printed(*words):
    """The JSON document of a command that succeeds."""
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def error_of(*words):
    """The message of a command that fails with one line."""
    result = run(*words)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")
