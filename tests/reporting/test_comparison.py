import json
import subprocess

import pytest

from moe_beyond.errors import InputError
from moe_beyond.registry.states import State, find_states
from moe_beyond.reporting.compare import differing_params, document, numbers, text
from moe_beyond.reporting.retraining import write_report
from moe_beyond.tracking.client import log_run
from moe_beyond.tracking.run_record import Record
from tests.registry.bundles import HEADLINE
from tests.tracking.small_pipeline import only

DEFAULTS = {"seed": 7, "train.epochs": 20, "train.window": 64}


def state(name, numbers=None, **params):
    return State(name, f"about {name}", {"seed": "7", **params}, numbers or {})


def test_only_parameters_that_differ_are_shown_and_absence_is_a_difference():
    assert differing_params([state("a"), state("b", seed="8", new="1")]) == [("new", (None, "1")), ("seed", ("7", "8"))]
    assert differing_params([state("a"), state("a")]) == []
    # git does not hold what the search chose
    sizes = [state("a", **{"chosen.width": "8"}), state("b", **{"chosen.width": "16"}), state("c")]
    assert differing_params(sizes[:2]) == [("chosen.width", ("8", "16"))]
    assert differing_params(sizes) == []


def test_numbers_carry_their_intervals_and_what_a_state_lacks_stays_empty():
    states = [state("a", HEADLINE), state("bare")]
    assert numbers(states) == [(name, (value, None)) for name, value in HEADLINE.items()]
    assert [text(found) for found in (*HEADLINE.values(), None)] == ["8 [7.5, 8.5]", "0.1", "\u2013"]
    assert document(states)["numbers"]["ms_per_token"] == {"a": HEADLINE["ms_per_token"], "bare": None}


@pytest.fixture
def repository(tmp_path):
    """One commit with parameters and the numbers that decide, and a change of both that is not committed."""
    for stage in ("simulate", "tune", "publish", "figures"):
        (tmp_path / "reports" / stage).mkdir(parents=True)
    (tmp_path / "params.yaml").write_text("seed: 7\ntrain: {epochs: 3}\n")
    (tmp_path / "reports/simulate/metrics.json").write_text(json.dumps(HEADLINE))
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], [*identity, "commit", "-q", "-m", "First\n\nmore"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "params.yaml").write_text("seed: 8\ntrain: {epochs: 3, window: 64}\n")
    (tmp_path / "reports/simulate/metrics.json").write_text(json.dumps(HEADLINE | {"token_step_ms": {"value": 0.3}}))
    (tmp_path / "reports/tune/best.yaml").write_text("width: 8\n")
    return tmp_path


def test_a_revision_is_read_from_git_and_the_workspace_from_files(repository):
    before, now = find_states(repository, ["main", "workspace"], DEFAULTS)
    assert before.about.endswith(", First")
    assert (before.numbers["token_step_ms"], now.numbers["token_step_ms"]) == ({"value": 0.1}, {"value": 0.3})
    # what one of them does not set has the default
    assert before.params == {"seed": "7", "train.epochs": "3", "train.window": "64"}
    assert now.params["chosen.width"] == "8"
    assert differing_params([before, now]) == [("seed", ("7", "8"))]


def test_an_experiment_of_dvc_is_found_by_its_name(repository):
    def keep(name, baseline):
        """As DVC keeps one: a commit under a ref of its baseline."""
        stashed = subprocess.run(["git", "stash", "create"], cwd=repository, check=True, capture_output=True, text=True)
        ref = f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}"
        subprocess.run(["git", "update-ref", ref, stashed.stdout.strip()], cwd=repository, check=True)

    identity = {"user.name": "t", "user.email": "t@example.invalid"}
    for key, value in identity.items():
        subprocess.run(["git", "config", key, value], cwd=repository, check=True)
    keep("tidal-pods", "a" * 40)
    before, experiment = find_states(repository, ["main", "tidal-pods"], DEFAULTS)
    assert differing_params([before, experiment]) == [("seed", ("7", "8"))]
    assert experiment.numbers["token_step_ms"] == {"value": 0.3}
    keep("tidal-pods", "b" * 40)
    with pytest.raises(InputError, match="2 experiments have this name; give the commit of one: "):
        find_states(repository, ["main", "tidal-pods"], DEFAULTS)


def test_a_state_in_mlflow_is_read_from_the_pipelines_run(project):
    metrics = (("ms_per_token", 8.0, 0), ("ms_per_token/low", 7.5, 0), ("ms_per_token_by_capacity/ours", 3.0, 5))
    for stage in ("pipeline", "drift"):
        logged = {"params": {"seed": "9"}, "metrics": metrics, "tags": {"moe_beyond.stage": stage}}
        log_run(project, Record(key=stage, name=stage, start_ms=1, end_ms=2, **logged))
    (found,) = find_states(project, [only(project, "pipeline").info.run_id], DEFAULTS)
    assert (found.numbers, found.params) == ({"ms_per_token": {"value": 8.0, "low": 7.5}}, {"seed": "9"})
    for name, message in (
        (only(project, "drift").info.run_id, r"\(drift\) belongs to no pipeline run"),
        ("f" * 32, "no run ffff"),
        ("champion", "name the registered model"),
    ):
        with pytest.raises(InputError, match=message):
            find_states(project, [name], DEFAULTS)


def test_what_is_no_state_is_named(repository, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    for folder, name, message in (
        (repository, "nowhere", "nowhere: neither an MLflow run, nor an alias"),
        (outside, "main", "is no git repository"),
        (outside, "workspace", r"no params\.yaml there"),
    ):
        with pytest.raises(InputError, match=message):
            find_states(folder, [name], DEFAULTS)


VERDICT = {
    "registered_model": "moe-beyond.m.d", "challenger": "2", "champion_before": "1", "champion": "1",
    "outcome": "refused", "reasons": ["fails: it is slower"], "improvement": None, "moves_champion": False,
    "checks": [{"rule": "faster", "value": -0.1, "limit": 0.005, "passed": False}], "pipeline_run": "abc",
}  # fmt: skip
TABLE = """contestant,version,split,metric,value,low,high
challenger,2,gate_in_domain,hit_rate,0.5,0.4,0.6
champion,1,gate_in_domain,hit_rate,0.55,0.5,0.6
challenger,2,all,hit_rate,0.5,0.4,0.6
"""


def test_the_report_says_verdict_reasons_and_differences(repository):
    out = repository / "reports/retrain.md"
    with pytest.raises(InputError, match=r"verdict\.json: no such file"):
        write_report(repository, "main", out, DEFAULTS)
    verdict, table = (repository / "reports/publish" / name for name in ("verdict.json", "table.csv"))
    verdict.write_text(json.dumps(VERDICT))
    table.write_text(TABLE)
    (repository / "reports/figures/ms_per_token.png").write_bytes(b"")
    write_report(repository, "main", out, DEFAULTS)
    report = out.read_text()
    for words in (
        "`moe-beyond.m.d` version 2: refused: the champion stays.",
        "- fails: it is slower",
        "| faster | -0.1 | 0.005 | no |",
        "| gate_in_domain | hit_rate | 0.5 | 0.55 |",
        "| `seed` | `7` | `8` |",
        "| ms_per_token | 8 [7.5, 8.5] | 8 [7.5, 8.5] | +0 |",
        "| token_step_ms | 0.1 | 0.3 | +0.2 |",
        "![ms per token](figures/ms_per_token.png)",
    ):
        assert words in report
    # without the revision, or before anyone has judged, the rest still gets out
    pending = {"challenger": None, "outcome": "pending", "checks": [], "pipeline_run": None}
    verdict.write_text(json.dumps(VERDICT | pending))
    table.write_text(TABLE.splitlines()[0] + "\n")
    write_report(repository, "nowhere", out, DEFAULTS)
    assert "Not available: nowhere: neither" in out.read_text()
    assert "the new version: not judged yet" in out.read_text()
