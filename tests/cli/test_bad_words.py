"""Whatever stands on the command line, a command ends in a result, a usage message, or one short line."""

import json

import pytest
import typer
from typer.testing import CliRunner

from moe_beyond.cli import app
from moe_beyond.errors import InputError
from moe_beyond.formats.export import export
from tests.simulator.strategies import make_trace

RECORDING = "read_bytes,wall_ms\n" + "".join(f"{1000000 * (i % 7)},{10 + i % 7}\n" for i in range(60))
DEVICE = "about: x\nlink_gb_per_s: 3\nsetup_us: 10\nlanes: 1\nmemory_gb_per_s: 30\nlayer_overhead_us: 5\n"
FIT = ("--layers", "2", "--top-k", "2", "--expert-mib", "1", "--dense-mib", "1")
WORDS = {
    "describe": ("t.parquet",),
    "assess": ("t.parquet",),
    "card": ("h.gguf",),
    "export trace": ("parquet", "t.parquet", "e.parquet"),
    "export placement": ("fitz-pins", "t.parquet", "out", "--slots", "2"),
    "import": ("moe-beyond-csv", "x", "o.parquet"),
    "replay": ("t.parquet", "--policy", "lru", "--capacity", "6", "--device", "d.yaml"),
    "advise": ("t.parquet", "--budget-mib", "0.005", "--device", "d.yaml"),
    "conform": ("t.parquet", "--policy", "lru", "--capacity", "6", "--engine-hits", "3"),
    "calibrate-device": ("run.csv", "o.yaml", "--resident-mib", "1"),
    "fit-device": ("run.csv", "--out", "o2.yaml", *FIT),
    "measure-device": ("nowhere", "--out", "o.yaml"),
    "run": ("./nowhere", "--prompts", "p.txt", "--capacity", "4"),
    "score": ("t.parquet",),
    "drift": ("t.parquet", "--against", "t.parquet", "--no-log"),
    "compare": ("HEAD",),
    "rollback": (),
    "resend": (),
    "retrain-report": (),
}
NUMBERS = ("nan", "inf", "-inf", "1e308", "1" + "0" * 400, "x", "")
TEXTS = ("", "x" * 5000, "a\nb", "../..", "/dev/null", "\x1b[31m", "é" * 300)
GROUPS = typer.main.get_command(app).commands  # type: ignore[attr-defined] # a group
COMMANDS = {
    f"{name} {inner}".strip(): command
    for name, outer in GROUPS.items()
    for inner, command in getattr(outer, "commands", {"": outer}).items()
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    export("parquet", make_trace(1, num_experts=8, lengths=(12, 9), prefill=(2, 3)), folder / "t.parquet")
    for name, text in (("run.csv", RECORDING), ("d.yaml", DEVICE), ("p.txt", "a few words\n")):
        (folder / name).write_text(text)
    return folder


def variants(command):
    """The words of a command with one of them replaced, and whether the new one is a number of no use."""
    words = list(WORDS[command])
    for i, word in enumerate(words):
        if not word.startswith("--") and (i == 0 or not words[i - 1].startswith("--")):
            yield from (([*words[:i], text, *words[i + 1 :]], False) for text in TEXTS)
    for option in COMMANDS[command].params:
        if option.param_type_name == "argument" or option.is_flag:
            continue
        kept = list(words)
        if option.opts[0] in kept:
            at = kept.index(option.opts[0])
            del kept[at : at + 2]
        numeric = any(kind in str(option.bare_type) for kind in ("int", "float"))
        yield from (([*kept, option.opts[0], value], numeric) for value in (NUMBERS if numeric else TEXTS))


def not_measured(*_args):
    raise InputError("a minute is too long for this test")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_bad_word_ends_in_one_short_line(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("moe_beyond.live.measure.measure_device", not_measured)
    for words, numeric in variants(command):
        ended = CliRunner().invoke(app, [*command.split(), *words])
        shown = [word[:40] for word in words]
        assert isinstance(ended.exception, SystemExit | None), (shown, ended.exception)
        assert ended.exit_code in (0, 1, 2, 3), (shown, ended.exit_code)
        assert not numeric or ended.exit_code in (1, 2), (shown, ended.stdout[:200])
        if ended.exit_code == 1:
            assert len(ended.stderr.strip().splitlines()) == 1, (shown, ended.stderr[:500])
        assert len(ended.stderr) < 2000, shown
        assert "\x1b" not in ended.stderr, shown


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("describe", "nowhere.parquet", "--json"), 1),
        (("replay", "t.parquet", "--policy", "lru", "--capacity", "x", "--json"), 2),
        (("replay", "t.parquet", "--policy", "lru", "--capacity", "6", "--accepted-share", "nan", "--json"), 1),
        (("score", "t.parquet", "--json", "--no-such-option"), 2),
    ],
)
def test_an_error_is_a_document_too(words, status, folder, monkeypatch):
    monkeypatch.chdir(folder)
    ended = CliRunner().invoke(app, words)
    found = json.loads(ended.stdout)
    assert ended.exit_code == found["status"] == status
    assert found["error"] and "\n" not in found["error"]
