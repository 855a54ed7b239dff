"""The gate against a registry in a local database: which predictor becomes champion, and rollback."""

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from unittest import mock

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server
from typer.testing import CliRunner

from moe_beyond.cli import app
from moe_beyond.errors import InputError
from moe_beyond.params import Params
from moe_beyond.predictor.contents import write_manifest
from moe_beyond.predictor.graph_file import LEAST_ONNXRUNTIME
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.registry import publishing
from moe_beyond.registry.publishing import Gate, publish
from moe_beyond.registry.registry import BUNDLE_DIGEST, Registry
from moe_beyond.registry.settings import PublishSettings
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.traces import store
from moe_beyond.tracking.client import connected
from moe_beyond.tracking.pipeline import log_pipeline
from tests.registry.bundles import small_bundle, small_project
from tests.traces_of_chance import chance_trace
from tests.tracking.small_pipeline import client, runs, warnings

SETTINGS = PublishSettings(metric="recall_at_k", margin=0.0, bootstrap_samples=100, latency_repeats=10)
NAME = "moe-beyond.chance.laptop_nvme"
DATA, TRACE = "data/traces", chance_trace(12, seed=5)


@pytest.fixture
def project(project, exported):
    """With the outs of the stages before, an exported predictor among them."""
    small_project(project, exported[0])
    return project


def run_publish(project, trace=TRACE):
    """What the publish stage does; returns verdict.json."""
    gate = Gate({"gate_in_domain": trace}, SETTINGS, SimulateSettings(), 1, ("digest",))
    log = partial(log_pipeline, project, Params(), "laptop_nvme", [DATA])
    publish(project, gate, log, lambda folder: small_bundle(folder, project, trace), DATA)
    return json.loads((project / "reports/publish/verdict.json").read_text())


def spoil(predictor, share):
    """Another predictor: a share of the numbers in the first graph's output layer drawn anew, which makes it worse."""
    for path in predictor.glob("token_step*.onnx"):
        model, rng = onnx.load(path), np.random.default_rng(0)
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.ndim >= 1:
                noise = rng.normal(0, values.std() + 1e-3, values.shape) * (rng.random(values.shape) < share)
                tensor.CopyFrom(onnx.numpy_helper.from_array((values + noise).astype(np.float32), tensor.name))
        onnx.save(model, path)
    write_manifest(predictor, LEAST_ONNXRUNTIME)


def reregistered(project, stored, text):
    """Write a bundle.json as if the champion had been registered with it."""
    stored.write_text(text)
    digest = hashlib.sha256(stored.read_bytes()).hexdigest()
    client(project).set_model_version_tag(NAME, "1", BUNDLE_DIGEST, digest)


def aliases(project):
    to = client(project)
    return {alias: str(to.get_model_version_by_alias(NAME, alias).version) for alias in ("champion", "challenger")}


def test_first_wins_worse_is_refused_better_takes_over_and_rollback_restores(project, exported, caplog):
    spoil(project / "models/predictor", 0.5)
    first = run_publish(project)
    assert (first["outcome"], first["champion_before"], first["champion"]) == ("first", None, "1")
    spoil(project / "models/predictor", 1.0)
    worse = run_publish(project)
    assert worse["outcome"] == "refused"
    assert warnings(caplog)[-1] == f"gate: refused: {'; '.join(worse['reasons'])}"
    assert any(reason.startswith("fails: recall_at_k improves by more than") for reason in worse["reasons"])
    assert aliases(project) == {"champion": "1", "challenger": "2"}
    shutil.copytree(exported[0], project / "models/predictor", dirs_exist_ok=True)
    better = run_publish(project)
    assert (better["outcome"], better["champion_before"]) == ("promoted", "1")
    assert better["improvement"]["low"] > 0
    assert aliases(project) == {"champion": "3", "challenger": "3"}
    # in a fresh clone, without a verdict: no second version, nothing moves
    (project / "reports/publish/verdict.json").unlink()
    assert run_publish(project)["outcome"] == "unchanged"
    to = client(project)
    gates = {str(found.version): found.tags["gate"] for found in to.search_model_versions(f"name = '{NAME}'")}
    assert gates == {"1": "first", "2": "refused", "3": "promoted"}
    registry = Registry(to, NAME)
    assert registry.roll_back() == ("3", "1")
    assert aliases(project)["champion"] == "1"
    for name, version, words in (
        (NAME, None, "version 1 is the first champion"),
        (NAME, "1", "version 1 is the champion already"),
        (NAME, "9", f"{NAME}@9: no such version"),
        ("unknown", None, f"unknown@champion: no such version or alias; .*{NAME}"),
    ):
        with pytest.raises(InputError, match=words):
            Registry(to, name).roll_back(version)
    # what was rolled back is not promoted again
    again = run_publish(project)
    assert again["outcome"] == "refused"
    assert "rolled back on" in again["reasons"][0]
    assert registry.roll_back("3") == ("1", "3")
    assert registry.history() == ["1", "3"]


def test_a_second_time_nothing_is_new_and_nothing_is_computed(project, monkeypatch):
    """Before a merge the gate only judges; the next time it moves the champion without judging again."""
    monkeypatch.setenv("MOE_BEYOND_GATE", "judge")
    verdict = run_publish(project)
    assert (verdict["outcome"], verdict["champion"]) == ("first", None)
    assert Registry(client(project), NAME).find("champion") is None
    monkeypatch.delenv("MOE_BEYOND_GATE")
    for name in ("latencies", "score", "_register"):
        monkeypatch.setattr(publishing, name, lambda *_: pytest.fail("nothing is new"))
    for _ in range(2):
        assert run_publish(project) == verdict | {"champion": "1"}
        assert aliases(project)["champion"] == "1"
    (run,) = [run for name, run in runs(project) if name.startswith("pipeline")]
    assert (run.info.run_id, run.info.status) == (verdict["pipeline_run"], "FINISHED")
    assert run.data.tags["gate.outcome"] == "first"
    version = client(project).get_model_version(NAME, "1")
    assert version.tags["run.pipeline"] == version.run_id == verdict["pipeline_run"]
    model = client(project).get_logged_model(version.source.removeprefix("models:/"))
    assert {metric.dataset_name for metric in model.metrics} == {"data.traces"}


def test_while_mlflow_is_away_the_champion_stays_and_the_next_time_catches_up(project, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    pending = run_publish(project)
    assert (pending["outcome"], pending["moves_champion"], pending["champion"]) == ("pending", False, None)
    assert (project / "reports/publish/table.csv").exists()
    assert [line for line in warnings(caplog) if "the champion stays as it is" in line] == [
        "MLFLOW_TRACKING_URI: http://127.0.0.1:9 failed ([Errno 111] Connection refused); start it (make ui on "
        "this machine), or correct or unset the variable; the champion stays as it is, the next dvc repro judges"
    ]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert run_publish(project)["outcome"] == "first"
    # the verdict stays while MLflow is away again
    verdict = (project / "reports/publish/verdict.json").read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run_publish(project)
    assert (project / "reports/publish/verdict.json").read_bytes() == verdict


@pytest.mark.parametrize("name", ["register", "note", "promote"])
def test_what_fails_in_the_middle_is_done_the_next_time_once(project, name):
    with mock.patch.object(Registry, name, side_effect=OSError("No space left on device")):
        assert run_publish(project)["champion"] is None
    assert run_publish(project)["champion"] == "1"
    assert len(client(project).search_model_versions(f"name = '{NAME}'")) == 1
    assert aliases(project) == {"champion": "1", "challenger": "1"}


@pytest.mark.parametrize("place", ["mlflow.pyfunc.log_model", "mlflow.tracking.MlflowClient.create_model_version"])
def test_a_model_of_a_registration_that_ended_in_the_middle_does_not_stay(project, place):
    with mock.patch(place, side_effect=OSError("No space left on device")):
        assert run_publish(project)["champion"] is None
    assert run_publish(project)["champion"] == "1"
    experiment = client(project).get_experiment_by_name("moe-beyond").experiment_id
    (model,) = client(project).search_logged_models([experiment])
    assert client(project).get_model_version(NAME, "1").source == f"models:/{model.model_id}"


def test_a_champion_loads_without_torch_and_predicts_as_the_runtime_does(project):
    run_publish(project)
    mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    assert "torch" not in Path(mlflow.pyfunc.get_model_dependencies(f"models:/{NAME}@champion")).read_text()
    stream = OnnxPredictor(project / "models/predictor").stream()
    before = np.array([[1, 2], [3, 4], [5, 6]])
    stream.step("Ġword1", None)
    expected = np.argsort(-stream.step("Ġword2", before), axis=1, kind="stable")[:, :3]
    rows = pd.DataFrame([{"tokens": ["Ġword1", "Ġword2"], "routing": [before.tolist()]}])
    found = model.predict(rows, params={"top": 3})
    assert np.array(found["experts"][0]).tolist() == [expected.tolist()]
    assert np.shape(model.predict(rows, params={"every_token": True})["probabilities"][0]) == (2, 3, 2)
    assert np.shape(model.predict(pd.DataFrame([{"tokens": ["Ġword1"]}]))["experts"][0]) == (1, 3, 2)
    # as a server gets it
    request = {"dataframe_records": [{"tokens": ["Ġthe", "Ġcat"], "routing": [[[0, 1]] * 3]}], "params": {"top": 3}}
    reply = TestClient(scoring_server.init(model)).post("/invocations", json=request)
    assert [len(layer) for layer in reply.json()["predictions"][0]["experts"][0]] == [3, 3, 3]
    with pytest.raises(InputError, match="routing: of 1 tokens, expected that of all 2"):
        model.unwrap_python_model().predict(None, rows.assign(tokens=[["a", "b", "c"]]))


def test_after_a_move_the_champion_is_found_and_a_challenger_is_judged(project, tmp_path, monkeypatch):
    run_publish(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    moved = tmp_path.with_name(f"{tmp_path.name} moved")
    shutil.move(project, moved)
    project.write_text("in the way")
    monkeypatch.chdir(moved)
    spoil(moved / "models/predictor", 1.0)
    verdict = run_publish(moved)
    assert (verdict["outcome"], verdict["champion"], verdict["challenger"]) == ("refused", "1", "2")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for version in ("1", "2"):
        found = client(moved).get_model_version(NAME, version)
        model = client(moved).get_logged_model(found.source.removeprefix("models:/"))
        assert model.artifact_location.startswith((moved / "mlartifacts").as_uri())
        with connected(moved) as connection:
            folder = Registry(connection.client, NAME).bundle_of(found)
        assert (folder / "predictor/token_step.onnx").is_file()


@pytest.mark.parametrize("name", ["predictor/token_step.onnx", "predictor/manifest.json", "bundle.json", "window.npz"])
def test_a_champion_that_somebody_changed_is_neither_judged_nor_drift(name, project, monkeypatch):
    run_publish(project)
    trace = chance_trace(10, seed=9)
    store.write_parquet(trace, project / "new.parquet")
    monkeypatch.chdir(project)
    words = ("drift", "new.parquet", "--against", f"{NAME}@champion", "--no-log")
    assert CliRunner().invoke(app, words).exit_code in (0, 3)
    stored = next((project / "mlartifacts").rglob(f"bundle/{name}"))
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)
    # neither 0, no drift, nor 3, which retrains and replaces it
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 4
    assert len(ended.stderr.strip().splitlines()) == 1
    spoil(project / "models/predictor", 0.1)
    assert run_publish(project)["outcome"] == "incomparable"
    assert aliases(project)["champion"] == "1"


def test_a_champion_of_another_shape_stays_with_the_reason(project, caplog):
    run_publish(project)
    stored = next((project / "mlartifacts").rglob("bundle/bundle.json"))
    whole = stored.read_text()
    manifest = json.loads(whole)
    spoil(project / "models/predictor", 0.1)
    for damage, words in (({"num_experts": 8}, "made for chance, 3 layers of 8"), ({"bundle_version": 99}, "99")):
        reregistered(project, stored, json.dumps(manifest | damage))
        other = run_publish(project)
        assert other["outcome"] == "incomparable"
        assert words in other["reasons"][0]
        assert warnings(caplog)[-1].startswith("gate: incomparable: ")
        assert words in warnings(caplog)[-1]
    stored.unlink()
    assert "its bundle is not the one that was registered" in run_publish(project)["reasons"][0]
    assert aliases(project) == {"champion": "1", "challenger": "2"}
    # once it is repaired
    reregistered(project, stored, whole)
    assert run_publish(project)["outcome"] in ("promoted", "refused")
