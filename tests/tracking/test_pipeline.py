"""The run of a state of the pipeline: what MLflow compares two states by."""

import pytest

from moe_beyond.params import Params
from moe_beyond.tracking.client import MlflowMissingError, connected, send
from moe_beyond.tracking.pipeline import credit, log_pipeline
from tests.registry.bundles import HEADLINE, small_project
from tests.reporting.example import BEST, OURS, on_device
from tests.tracking.small_pipeline import artifacts, client, points, readdress, records, run_split, runs

SPLITS = ["data/splits/train", "data/traces"]


@pytest.fixture
def state(project, tmp_path_factory):
    """A project in which the stages have run; one of them is in MLflow."""
    predictor = tmp_path_factory.mktemp("predictor")
    (predictor / "token_step.onnx").touch()
    small_project(project, predictor)
    run_split(project)
    return project


def log(root, seed=7):
    return log_pipeline(root, Params(seed=seed), "laptop_nvme", SPLITS)


def test_it_holds_what_decides_and_the_way_to_the_stages(state):
    run_id = log(state)
    run = client(state).get_run(run_id)
    assert run.info.status == "FINISHED"
    numbers = {name: value for name, value in run.data.metrics.items() if "_by_capacity/" not in name}
    assert numbers == {"ms_per_token": 8, "ms_per_token/low": 7.5, "ms_per_token/high": 8.5, "token_step_ms": 0.1}
    # curves over the capacity, of the last split
    rows = on_device().filter(split="test_out_of_domain", device="laptop_nvme").sort("capacity_experts")
    for name, policy in (("lru", "lru"), ("ours", OURS), ("best_without_predictor", BEST)):
        for measure in ("ms_per_token", "hit_rate"):
            expected = list(rows.filter(policy=policy).select("capacity_experts", measure).iter_rows())
            assert points(client(state), run, f"{measure}_by_capacity/{name}") == expected
    assert (run.data.params["chosen.width"], run.data.params["train.epochs"]) == ("16", str(Params().train.epochs))
    assert [data.dataset.name for data in run.inputs.dataset_inputs] == ["data.splits.train", "data.traces"]
    files = "reports/index.html", "reports/figures/a.png", "models/predictor/token_step.onnx"
    assert set(artifacts(client(state), run_id)) == set(files)
    stage = next(found for name, found in runs(state) if name == "split")
    assert run.data.tags["run.split"] == stage.info.run_id
    assert stage.info.run_id in run.data.tags["mlflow.note.content"]
    assert "- assess: not in this MLflow" in run.data.tags["mlflow.note.content"]
    assert stage.data.tags["mlflow.parentRunId"] == run_id


def test_a_state_has_one_run_and_a_stage_stays_below_the_first(state):
    first = log(state)
    assert log(state) == first
    second = log(state, seed=8)
    assert second != first
    stage = next(run for name, run in runs(state) if name == "split")
    assert stage.data.tags["mlflow.parentRunId"] == first
    assert client(state).get_run(second).data.tags["run.split"] == stage.info.run_id


def test_while_mlflow_is_away_its_record_waits_behind_those_of_the_stages(state, monkeypatch):
    (state / "data/traces/a.txt").write_text("b")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run_split(state)
    for _ in range(2):
        with pytest.raises(MlflowMissingError, match=r"http://127\.0\.0\.1:9 failed"):
            log(state)
    assert len(records(state)) == 2
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    readdress(state, "http://127.0.0.1:9", "")
    sent = send(state)
    assert sent.logged == ["split", *[name for name, _ in runs(state) if name.startswith("pipeline")]]
    newest = [run.info.run_id for name, run in runs(state) if name == "split"][-1]
    assert client(state).get_run(log(state)).data.tags["run.split"] == newest


def test_numbers_are_tied_to_the_model_and_the_data_once(state):
    run_id = log(state)
    with connected(state) as to:
        model = to.client.create_logged_model(to.experiment_id, "predictor", source_run_id=run_id)
        for _ in range(2):
            credit(to.client, run_id, model.model_id, state, SPLITS[-1])
    found = client(state).get_logged_model(model.model_id).metrics
    assert {metric.dataset_name for metric in found} == {"data.traces"}
    assert len(found) == sum(len(interval) for interval in HEADLINE.values())
    run = client(state).get_run(run_id)
    assert points(client(state), run, "ms_per_token") == [(0, 8.0)]
