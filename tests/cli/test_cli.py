import json

import pytest
from typer.testing import CliRunner

from moe_beyond.cli import app
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.traces import store
from tests.traces_of_chance import chance_trace


@pytest.fixture
def trace_file(tmp_path):
    store.write_parquet(chance_trace(30), tmp_path / "trace.parquet")
    return tmp_path / "trace.parquet"


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_describe_prints_a_table_or_json_and_help_names_every_command(trace_file):
    described = json.loads(run("describe", trace_file, "--json").stdout)
    assert described["prompts"] == 30
    assert described["activations"] == described["tokens"] * 3 * 2
    table = run("describe", trace_file)
    assert table.exit_code == 0
    assert "chance" in table.stdout
    shown = run("--help").stdout
    for command in ("import", "export", "describe", "assess", "score", "replay", "advise", "calibrate-device"):
        assert command in shown


def test_assess_gives_a_verdict_with_reasons(trace_file):
    card = json.loads(run("assess", trace_file, "--json").stdout)
    assert card["verdict"] in ("go", "go with a bigger cache", "do not")
    assert card["reasons"]


def test_an_exported_dataset_reads_as_the_trace_it_came_from(trace_file, tmp_path):
    assert run("export", "hub", trace_file, tmp_path / "hub").exit_code == 0
    before, after = (json.loads(run("describe", path, "--json").stdout) for path in (trace_file, tmp_path / "hub"))
    for name in ("prompts", "tokens", "activations", "columns", "domains"):
        assert before[name] == after[name]


def test_an_error_is_one_line_with_status_one(tmp_path):
    for words in (
        ("describe", tmp_path / "none.parquet"),
        ("import", "unknown", tmp_path, tmp_path / "out"),
    ):
        result = run(*words)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1


def test_score_gives_recall_and_the_papers_hit_rates(trace_file, exported):
    result = run("score", trace_file, "--predictor", exported[0], "--json")
    scored = json.loads(result.stdout)
    horizons = {"token", *(f"{h + 1}_ahead" for h in range(OnnxPredictor(exported[0]).horizon))}
    assert len(horizons) >= 3
    assert set(scored["quality"]) == set(scored["published_protocol"]) == horizons
    for horizon in horizons:
        quality, replayed = scored["quality"][horizon], scored["published_protocol"][horizon]
        assert set(quality) == {"all/all", "all/1", "all/2", "all/3", "prefill/all", "decode/all"}
        assert quality["all/all"]["recall_low"] <= quality["all/all"]["recall_at_k"]
        assert set(replayed) == {"4 experts", "9 experts", "24 experts"}
        assert 0 < replayed["24 experts"]["hit_rate"] <= 1
