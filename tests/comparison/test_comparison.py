import json
import subprocess

import polars as pl
import pytest

from moe_beyond.errors import InputError
from moe_beyond.registry.revisions import State, revision, shortened, workspace
from moe_beyond.reporting.compare import Cell, differing_params, document, headline
from moe_beyond.reporting.retraining import write_report


def replay(rate):
    rows = [
        (split, policy, share, rate * share * factor, rate * share * factor - 0.01, rate * share * factor + 0.01, 1.0)
        for split in ("test_in_domain", "test_out_of_domain")
        for policy, factor in (("lru", 0.5), ("predictor_prefetch_lru", 0.9), ("belady", 1.0))
        for share in (0.1, 0.5)
    ]
    columns = [
        "split",
        "policy",
        "capacity_fraction",
        "hit_rate",
        "hit_rate_low",
        "hit_rate_high",
        "mib_per_token",
    ]
    return pl.DataFrame(rows, schema=columns, orient="row")


def state(name, rate=0.8, **params):
    known = {"simulate.headline_capacity": "0.1", "seed": "7"} | params
    return State(name, f"about {name}", known, {"train/parameters": 1000.0}, {"replay": replay(rate)}, {})


def test_only_parameters_that_differ_are_shown_and_absence_is_a_difference():
    states = [state("a", seed="7"), state("b", seed="8", new="1")]
    assert differing_params(states) == [("new", (None, "1")), ("seed", ("7", "8"))]
    assert differing_params([states[0], states[0]]) == []


def test_headline_numbers_carry_their_intervals_and_what_a_state_lacks_stays_empty():
    bare = State("bare", "", {}, {}, {}, {"replay": "gone"})
    rows = {row.metric: row.cells for row in headline([state("a"), bare])}
    titles = [row.title for row in headline([state("a"), bare])]
    assert "hit rate, Same domain, Predictor prefetch + LRU" in titles
    cell = rows["hit rate, test_in_domain, predictor_prefetch_lru"][0]
    assert cell is not None
    assert (cell.value, cell.low, cell.high) == pytest.approx((0.072, 0.062, 0.082))
    assert all(cells[1] is None for cells in rows.values())
    assert Cell(1000.0).text == "1,000"
    assert Cell(0.5, 0.4, 0.6).text == "0.5 [0.4, 0.6]"
    found = document([state("a"), bare])
    assert found["headline"]["train/parameters"] == {"a": {"value": 1000.0, "low": None, "high": None}, "bare": None}
    json.dumps(found, allow_nan=False)


def test_versions_of_one_registered_model_go_by_what_tells_them_apart():
    several = shortened([state("team.model@2"), state("team.model@champion")])
    assert [s.name for s in several] == ["version 2", "champion"]
    assert several[0].about == "team.model, about team.model@2"
    mixed = [state("team.model@2"), state("other@2"), state("HEAD")]
    assert shortened(mixed) == mixed


@pytest.fixture
def repository(tmp_path):
    """One commit with parameters and a metric, and a change of both that is not committed."""
    (tmp_path / "reports/train").mkdir(parents=True)
    (tmp_path / "params.yaml").write_text("seed: 7\ntrain: {epochs: 3}\n")
    (tmp_path / "reports/train/metrics.json").write_text('{"parameters": 5, "deep": {"er": 1.5}, "none": null}')
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], [*identity, "commit", "-q", "-m", "First\n\nmore"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "params.yaml").write_text("seed: 8\ntrain: {epochs: 3}\n")
    return tmp_path


def test_a_revision_is_read_from_git_and_the_workspace_from_files(repository):
    before, now = revision(repository, "main"), workspace(repository)
    assert before.about.endswith(", First")
    assert before.metrics == {"train/parameters": 5, "train/deep/er": 1.5} == now.metrics
    assert differing_params([before, now]) == [("seed", ("7", "8"))]
    assert set(before.missing) == set(now.missing) == {"replay", "quality", "gate"}


def test_what_is_no_state_is_named(repository, tmp_path_factory):
    with pytest.raises(InputError, match="nowhere: neither an MLflow run, nor an alias"):
        revision(repository, "nowhere")
    outside = tmp_path_factory.mktemp("outside")
    with pytest.raises(InputError, match="is no git repository"):
        revision(outside, "main")
    with pytest.raises(InputError, match=r"no params\.yaml there"):
        workspace(outside)


VERDICT = {
    "registered_model": "moe-beyond.m.d", "challenger": "2", "champion_before": "1", "champion": "1",
    "outcome": "refused", "reasons": ["fails: it is slower"], "improvement": None, "moves_champion": False,
    "checks": [{"rule": "faster", "value": -0.1, "limit": 0.005, "passed": False}],
}  # fmt: skip


def test_the_report_says_verdict_reasons_and_differences(repository):
    with pytest.raises(InputError, match=r"verdict\.json: no such file"):
        write_report(repository, "main", repository / "reports/retrain.md")
    (repository / "reports/publish").mkdir()
    (repository / "reports/publish/verdict.json").write_text(json.dumps(VERDICT))
    (repository / "reports/publish/run.json").write_text('{"run_id": "abc"}')
    (repository / "reports/figures").mkdir()
    (repository / "reports/figures/hit_rate_test_in_domain.png").write_bytes(b"")
    write_report(repository, "main", repository / "reports/retrain.md")
    report = (repository / "reports/retrain.md").read_text()
    for words in (
        "`moe-beyond.m.d` version 2: refused: the champion stays.",
        "- fails: it is slower",
        "| faster | -0.1 | 0.005 | no |",
        "| `seed` | `7` | `8` |",
        "| train/parameters | 5 | 5 | +0 |",
        "![hit rate test in domain](figures/hit_rate_test_in_domain.png)",
    ):
        assert words in report
    # without the revision the verdict still gets out
    write_report(repository, "nowhere", repository / "reports/retrain.md")
    assert "Not available: nowhere: neither" in (repository / "reports/retrain.md").read_text()
