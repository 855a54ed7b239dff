from moe_beyond.predictor.runtime import OnnxPredictor
from tests.cli.commands import error_of, printed, run


def test_describe_prints_a_table_or_json_and_help_names_every_command(trace_file):
    described = printed("describe", trace_file)
    assert described["prompts"] == 16
    assert described["activations"] == described["tokens"] * 3 * 2
    assert "chance" in run("describe", trace_file).stdout
    shown = run("--help").stdout
    for command in ("import", "export", "describe", "assess", "score", "replay", "advise", "calibrate-device"):
        assert command in shown


def test_assess_gives_a_verdict_with_reasons(trace_file):
    card = printed("assess", trace_file)
    assert card["verdict"] in ("go", "go with a bigger cache", "do not")
    assert card["reasons"]


def test_an_exported_dataset_reads_as_the_trace_it_came_from(trace_file, tmp_path):
    assert run("export", "hub", trace_file, tmp_path / "hub").exit_code == 0
    before, after = (printed("describe", path) for path in (trace_file, tmp_path / "hub"))
    for name in ("prompts", "tokens", "activations", "columns", "domains"):
        assert before[name] == after[name]


def test_an_error_is_one_line_with_status_one(tmp_path):
    assert "none.parquet" in error_of("describe", tmp_path / "none.parquet")
    assert "unknown" in error_of("import", "unknown", tmp_path, tmp_path / "out")


def test_score_gives_recall_and_the_papers_hit_rates(trace_file, exported):
    scored = printed("score", trace_file, "--predictor", exported[0])
    horizons = {"token", *(f"{h + 1}_ahead" for h in range(OnnxPredictor(exported[0]).horizon))}
    assert len(horizons) >= 3
    assert set(scored["quality"]) == set(scored["published_protocol"]) == horizons
    for horizon in horizons:
        quality, replayed = scored["quality"][horizon], scored["published_protocol"][horizon]
        assert set(quality) == {"all/all", "all/1", "all/2", "all/3", "prefill/all", "decode/all"}
        assert quality["all/all"]["recall_low"] <= quality["all/all"]["recall_at_k"]
        assert set(replayed) == {"4 experts", "9 experts", "24 experts"}
        assert 0 < replayed["24 experts"]["hit_rate"] <= 1
