"""Commands replace only what they wrote themselves."""

import pytest

from moe_beyond.formats.export import export
from tests.cli.test_commands import error_of, run
from tests.simulator.strategies import make_trace

RECORDING = "read_bytes,wall_ms\n" + "".join(f"{1000 * (i % 7)},{10 + i % 7}\n" for i in range(60))
COMMANDS = {
    "import": ("import", "moe-beyond-csv", "csv", "OUT"),
    "export parquet": ("export", "parquet", "trace.parquet", "OUT"),
    "export hub": ("export", "hub", "trace.parquet", "OUT"),
    "export moe-beyond-csv": ("export", "moe-beyond-csv", "trace.parquet", "OUT"),
    "export placement": ("export", "placement", "fitz-pins", "trace.parquet", "OUT", "--slots", "2", "--anyway"),
    "assess": ("assess", "trace.parquet", "--figure", "OUT.svg"),
    "calibrate-device": ("calibrate-device", "run.csv", "OUT.yaml", "--resident-mib", "1"),
    "fit-device": (
        *("fit-device", "run.csv", "--out", "OUT.yaml", "--layers", "2", "--top-k", "2"),
        *("--expert-mib", "1", "--dense-mib", "1"),
    ),
    "measure-device": ("measure-device", ".", "--out", "OUT.yaml"),
    "run": ("run", "model", "--prompts", "prompts.txt", "--capacity", "4", "--record", "OUT"),
    "retrain-report": ("retrain-report", "--out", "OUT"),
}
FOLDERS = ("export hub", "export moe-beyond-csv")


@pytest.fixture(autouse=True)
def inputs(tmp_path, monkeypatch):
    trace = make_trace(1, num_experts=8, lengths=(12, 9), prefill=(2, 3))
    export("parquet", trace, tmp_path / "trace.parquet")
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "mine.txt").write_text("dear")
    (tmp_path / "run.csv").write_text(RECORDING)
    (tmp_path / "prompts.txt").write_text("a few words\n")
    monkeypatch.chdir(tmp_path)


def state(folder):
    return {path.relative_to(folder).as_posix(): path.is_dir() or path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_stands_at_the_output_is_left(name, tmp_path):
    words = COMMANDS[name]
    (out,) = (word for word in words if word.startswith("OUT"))
    (tmp_path / out).mkdir()
    (tmp_path / out / "mine.txt").write_text("dear")
    before = state(tmp_path)
    message = error_of(*words)
    assert f"{out}: holds mine.txt" in message if name in FOLDERS else f"{out}: is a folder" in message
    assert state(tmp_path) == before
    (tmp_path / out / "mine.txt").unlink()
    (tmp_path / out).rmdir()
    (tmp_path / out).write_text("dear")
    before = state(tmp_path)
    message = error_of(*words)
    assert f"{out}: is a file" in message if name in FOLDERS else f"{out}: was not written by this command" in message
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    "words",
    [
        ("import", "moe-beyond-csv", "csv", "csv"),
        ("import", "moe-beyond-csv", "csv", "csv/out.parquet"),
        ("export", "parquet", "trace.parquet", "trace.parquet"),
        ("export", "hub", "trace.parquet", "."),
        ("calibrate-device", "run.yaml", "run.yaml", "--resident-mib", "1"),
        ("run", "model", "--prompts", "prompts.txt", "--capacity", "4", "--record", "prompts.txt"),
    ],
)
def test_an_input_is_no_output(words, tmp_path):
    (tmp_path / "run.yaml").write_text(RECORDING)
    before = state(tmp_path)
    assert "in the input" in error_of(*words)
    assert state(tmp_path) == before


@pytest.mark.parametrize("name", ["export parquet", "export hub", "calibrate-device"])
def test_what_the_command_wrote_is_replaced(name, tmp_path):
    for _ in range(2):
        result = run(*COMMANDS[name])
        assert result.exit_code == 0, result.stderr
