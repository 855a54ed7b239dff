"""The gate against a registry in a local database: who becomes champion, who does not, and the way back."""

import json
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
import yaml

from moe_beyond.errors import InputError
from moe_beyond.params import load_params
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.registry.publishing import Gate, carry_out, publish
from moe_beyond.registry.registry import Registry
from moe_beyond.registry.settings import PublishSettings
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.tracking import stage_run
from moe_beyond.tracking.asking import must_answer
from tests.registry.bundles import small_bundle, small_project
from tests.traces_of_chance import chance_trace

SETTINGS = PublishSettings(metric="recall_at_k", margin=0.0, bootstrap_samples=100, latency_repeats=10)
NAME = "moe-beyond.chance.laptop_nvme"


@pytest.fixture
def project(project, exported):
    """With a publish stage and an exported predictor."""
    outs = ["reports/publish/verdict.json", "reports/publish/table.csv", "reports/publish/run.json"]
    stage = {"cmd": "x", "deps": [], "params": ["publish"], "outs": outs, "metrics": ["reports/publish/metrics.json"]}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"publish": stage}}))
    small_project(project, exported[0])
    return project


def run_publish(project, folder, trace=None, settings=SETTINGS):
    """The publish stage's dealings, on a bundle of models/predictor; returns verdict.json."""
    trace = trace or chance_trace(12, seed=5)
    small_bundle(folder, project, trace)
    with stage_run("publish", load_params) as run:
        gate = Gate({"test_in_domain": trace}, settings, SimulateSettings(), 1)
        publish(run, Registry(run.client, NAME), folder, gate, "p" * 32)()
    return json.loads((project / "reports/publish/verdict.json").read_text())


def spoil(predictor, share):
    """Another predictor: a share of the numbers in the first graph's output layer drawn anew, which makes it worse."""
    for path in predictor.glob("token_step*.onnx"):
        model = onnx.load(path)
        rng = np.random.default_rng(0)
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.ndim >= 1:
                noise = rng.normal(0, values.std() + 1e-3, values.shape) * (rng.random(values.shape) < share)
                tensor.CopyFrom(onnx.numpy_helper.from_array((values + noise).astype(np.float32), tensor.name))
        onnx.save(model, path)


def champion(project):
    client = mlflow.MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    return {alias: str(client.get_model_version_by_alias(NAME, alias).version) for alias in ("champion", "challenger")}


def test_first_wins_worse_is_refused_better_takes_over_and_rollback_restores(project, tmp_path, exported):
    good = {file.name: file.read_bytes() for file in exported[0].iterdir()}
    spoil(project / "models/predictor", 0.5)
    first = run_publish(project, tmp_path / "b1" / "bundle")
    assert (first["outcome"], first["champion_before"], first["champion"]) == ("first", None, "1")
    spoil(project / "models/predictor", 1.0)
    worse = run_publish(project, tmp_path / "b2" / "bundle")
    assert worse["outcome"] == "refused", worse["reasons"]
    assert any(reason.startswith("fails: recall_at_k improves by more than") for reason in worse["reasons"])
    assert champion(project) == {"champion": "1", "challenger": "2"}
    for name, content in good.items():
        (project / "models/predictor" / name).write_bytes(content)
    better = run_publish(project, tmp_path / "b3" / "bundle")
    assert (better["outcome"], better["champion_before"]) == ("promoted", "1")
    assert better["improvement"]["low"] > 0
    assert champion(project) == {"champion": "3", "challenger": "3"}
    # once more with nothing new: no second version, nothing moves
    assert run_publish(project, tmp_path / "b4" / "bundle")["outcome"] == "unchanged"
    client = mlflow.MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    versions = {v.version: v.tags for v in client.search_model_versions(f"name = '{NAME}'")}
    assert {str(number): tags["gate"] for number, tags in versions.items()} == {
        "1": "first", "2": "refused", "3": "promoted"
    }  # fmt: skip
    registry = Registry(client, NAME)
    assert registry.roll_back() == ("3", "1")
    assert champion(project)["champion"] == "1"
    with pytest.raises(InputError, match="version 1 is the first champion"):
        registry.roll_back()
    # what was rolled back does not come back by itself
    again = run_publish(project, tmp_path / "b5" / "bundle")
    assert again["outcome"] == "refused"
    assert "rolled back on" in again["reasons"][0]
    assert registry.roll_back("3") == ("1", "3")
    assert registry.history() == ["1", "3"]


def test_a_champion_loads_without_torch_and_answers_as_the_runtime_does(project, tmp_path):
    run_publish(project, tmp_path / "b1" / "bundle")
    mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    assert not any(line.startswith("torch") for line in Path(mlflow.pyfunc.get_model_dependencies(
        f"models:/{NAME}@champion")).read_text().splitlines())  # fmt: skip
    stream = OnnxPredictor(project / "models/predictor").stream()
    before = np.array([[1, 2], [3, 4], [5, 6]])
    stream.step("Ġword1", None)
    expected = np.argsort(-stream.step("Ġword2", before), axis=1, kind="stable")[:, :3]
    rows = pd.DataFrame([{"tokens": ["Ġword1", "Ġword2"], "routing": [before.tolist()]}])
    answer = model.predict(rows, params={"top": 3})
    assert np.array(answer["experts"][0]).tolist() == [expected.tolist()]
    assert np.shape(model.predict(rows, params={"every_token": True})["probabilities"][0]) == (2, 3, 2)
    assert np.shape(model.predict(pd.DataFrame([{"tokens": ["Ġword1"]}]))["experts"][0]) == (1, 3, 2)
    with pytest.raises(InputError, match="routing: of 1 tokens, expected that of all 2"):
        model.unwrap_python_model().predict(
            None, pd.DataFrame([{"tokens": ["a", "b", "c"], "routing": [before.tolist()]}])
        )


def test_a_champion_of_another_shape_stays_and_is_said(project, tmp_path, exported):
    run_publish(project, tmp_path / "b1" / "bundle")
    stored = next((project / "mlartifacts").rglob("bundle/bundle.json"))
    manifest = json.loads(stored.read_text())
    spoil(project / "models/predictor", 0.1)
    stored.write_text(json.dumps(manifest | {"num_experts": 8}))
    other = run_publish(project, tmp_path / "b2" / "bundle")
    assert other["outcome"] == "incomparable"
    assert "made for chance, 3 layers of 8 experts" in other["reasons"][0]
    stored.write_text(json.dumps(manifest | {"bundle_version": 99}))
    newer = run_publish(project, tmp_path / "b3" / "bundle")
    assert newer["outcome"] == "incomparable"
    assert "bundle version 99" in newer["reasons"][0]
    stored.unlink()
    assert "this is no bundle" in run_publish(project, tmp_path / "b4" / "bundle")["reasons"][0]
    assert champion(project) == {"champion": "1", "challenger": "2"}


def test_before_a_merge_the_gate_judges_and_the_verdict_is_carried_out_after(project, tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_BEYOND_GATE", "judge")
    judged = run_publish(project, tmp_path / "b1" / "bundle")
    assert (judged["moves_champion"], judged["champion"]) == (True, None)
    client = mlflow.MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    registry = Registry(client, NAME)
    assert registry.by_alias("champion") is None
    assert carry_out(registry, judged) == "version 1 is the champion now"
    assert carry_out(registry, judged) == "version 1 is the champion"
    late = judged | {"challenger": "2"}
    assert "dvc repro -f -s publish" in carry_out(registry, late)
    assert champion(project)["champion"] == "1"


def test_a_registry_that_is_not_there_is_one_line(project, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(SystemExit), stage_run("publish", load_params) as run, must_answer(run.client.uri):
        pytest.fail("nothing can be published")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: MLFLOW_TRACKING_URI: http://127.0.0.1:9 does not answer; start it (make ui on this machine) or unset "
        "the variable"
    ]


def test_a_name_without_a_champion_is_told_with_those_there_are(project, tmp_path):
    run_publish(project, tmp_path / "b1" / "bundle")
    client = mlflow.MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    with pytest.raises(InputError, match=f"nobody@champion: no such version or alias; .*{NAME}"):
        Registry(client, "nobody").roll_back()
    with pytest.raises(InputError, match=f"{NAME}@9: no such version"):
        Registry(client, NAME).roll_back("9")
    with pytest.raises(InputError, match="version 1 is the champion already"):
        Registry(client, NAME).roll_back("1")


def test_traces_of_the_same_name_but_another_shape_do_not_reach_the_contest(project, tmp_path):
    run_publish(project, tmp_path / "b1" / "bundle")
    other = chance_trace(4)
    renamed = replace(other, metadata=other.metadata.model_copy(update={"layer_numbers": (4, 5, 6)}))
    with pytest.raises(SystemExit):
        run_publish(project, tmp_path / "b2" / "bundle", trace=renamed)
