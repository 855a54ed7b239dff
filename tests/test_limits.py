"""Limits that a process is given."""

import pytest
from typer.testing import CliRunner

from moe_beyond.cli import app
from moe_beyond.documents import load_json
from moe_beyond.errors import InputError
from moe_beyond.limits import VARIABLE, Limits, limited, limits


def test_the_environment_sets_limits_and_a_block_goes_before_it(monkeypatch):
    assert limits() == Limits()
    monkeypatch.setenv(VARIABLE, "depth=3, members=7")
    assert limits() == Limits(depth=3, members=7)
    with pytest.raises(InputError, match="more than 3 lists or objects"):
        load_json("[" * 4 + "]" * 4, "x")
    with limited(depth=4):
        assert limits() == Limits(depth=4, members=7)
        assert load_json("[" * 4 + "]" * 4, "x")
    monkeypatch.delenv(VARIABLE)
    assert limits() == Limits()


@pytest.mark.parametrize(
    "word", ["depth", "deep=3", "depth=0", "depth=-1", "depth=1e3", "depth=٣", "depth=" + "9" * 30]
)
def test_what_is_no_limit_is_one_line(monkeypatch, word):
    monkeypatch.setenv(VARIABLE, word)
    with pytest.raises(InputError, match=r"^MOE_BEYOND_LIMITS: .*of file_bytes, .*settings_bytes$"):
        limits()


def test_a_command_says_so_in_its_one_line(monkeypatch, tmp_path):
    (tmp_path / "x.csv").write_text("a\n")
    monkeypatch.setenv(VARIABLE, "deep=3")
    ended = CliRunner().invoke(app, ["import", "moe-beyond-csv", str(tmp_path / "x.csv"), str(tmp_path / "x.parquet")])
    assert ended.exit_code == 1
    assert "error: MOE_BEYOND_LIMITS: 'deep=3'; give NAME=WHOLE NUMBER" in ended.stderr
