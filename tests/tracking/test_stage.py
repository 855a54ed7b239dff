import json

import pytest
from mlflow.tracking import MlflowClient

from moe_beyond.errors import InputError
from moe_beyond.params import load_params
from moe_beyond.tracking import stage_run
from moe_beyond.files import folder_digest


def client(project):
    return MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


def all_runs(project):
    experiment = client(project).get_experiment_by_name("moe-beyond")
    return client(project).search_runs([experiment.experiment_id])


def artifacts(project, run_id, path=None):
    for entry in client(project).list_artifacts(run_id, path):
        if entry.is_dir:
            yield from artifacts(project, run_id, entry.path)
        else:
            yield entry.path


def run_split(project, recall=0.5):
    with stage_run("split", load_params) as run:
        (project / "data/splits/train").mkdir(parents=True, exist_ok=True)
        (project / "data/splits/train/x.npy").write_bytes(b"x")
        run.log_step_metrics({"loss": 2.0}, step=1)
        run.log_step_metrics({"loss": 1.0}, step=2)
        run.write_metrics({"splits": {"train": {"prompts": 3}}, "recall": recall})
    return run.run_id


def test_a_run_holds_params_metrics_data_sets_artifacts_and_versions(project):
    run_id = run_split(project)
    run = client(project).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "split"
    assert run.data.params["seed"] == "7"
    assert run.data.params["split.test_fraction"] == "0.1"
    assert not any(name.startswith("train.") for name in run.data.params)
    assert run.data.metrics["splits/train/prompts"] == 3
    assert [point.value for point in client(project).get_metric_history(run_id, "loss")] == [2.0, 1.0]
    dataset = run.inputs.dataset_inputs[0].dataset
    assert dataset.name == "data.traces"
    assert dataset.digest == folder_digest(project / "data/traces")[:36]
    assert run.data.tags["version.torch"].startswith("2.")
    assert set(artifacts(project, run_id)) == {
        "data/splits/train/x.npy",
        "reports/split/metrics.json",
        "reports/split/run.json",
    }


def test_the_file_and_mlflow_hold_the_same_numbers_and_the_receipt_names_the_run(project):
    run_id = run_split(project)
    written = json.loads((project / "reports/split/metrics.json").read_text())
    assert written == {"splits": {"train": {"prompts": 3}}, "recall": 0.5}
    assert client(project).get_run(run_id).data.metrics["recall"] == written["recall"]
    assert json.loads((project / "reports/split/run.json").read_text())["run_id"] == run_id


def test_bad_input_is_one_line_a_failed_run_and_no_receipt(project, capsys):
    with pytest.raises(SystemExit) as caught, stage_run("split", load_params):
        raise InputError("prompts.jsonl: line 3: no 'prompt'; add it")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: prompts.jsonl: line 3: no 'prompt'; add it\n"
    assert [run.info.status for run in all_runs(project)] == ["FAILED"]
    assert not (project / "reports/split/run.json").exists()


def test_a_crash_is_a_failed_run_and_passes(project):
    with pytest.raises(ZeroDivisionError), stage_run("split", load_params):
        raise ZeroDivisionError
    assert [run.info.status for run in all_runs(project)] == ["FAILED"]


def test_a_bad_parameter_ends_before_any_run(project, capsys):
    (project / "params.yaml").write_text("split: {test_fraction: 2}\n")
    with pytest.raises(SystemExit), stage_run("split", load_params):
        pytest.fail("the stage must not start")
    assert "split.test_fraction" in capsys.readouterr().err
    assert not (project / "mlflow.db").exists()


def test_an_out_that_was_not_written_is_named(project, capsys):
    with pytest.raises(SystemExit), stage_run("split", load_params) as run:
        run.write_metrics({"recall": 1.0})
    assert "data/splits: the stage did not write this out" in capsys.readouterr().err
    assert [run.info.status for run in all_runs(project)] == ["FAILED"]
    assert not (project / "reports/split/run.json").exists()


def test_trials_are_child_runs(project):
    with stage_run("split", load_params) as run:
        with run.children("trial-0", {"width": 8}) as log_step:
            log_step({"recall": 0.25}, 3)
        with pytest.raises(KeyError), run.children("trial-1", {"width": 9}):
            raise KeyError
        (project / "data/splits").mkdir()
        run.write_metrics({"x": 1})
    children = client(project).search_runs(
        [run.client.get_run(run.run_id).info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.run_id}'"
    )
    seen = {child.info.run_name: (child.info.status, child.data.params, child.data.metrics) for child in children}
    assert seen == {
        "trial-0": ("FINISHED", {"width": "8"}, {"recall": 0.25}),
        "trial-1": ("FAILED", {"width": "9"}, {}),
    }


def test_a_throw_away_copy_logs_to_the_main_checkout(project, tmp_path, monkeypatch):
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "copy"
    (copy / "data/traces").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml"):
        (copy / name).write_text((project / name).read_text())
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.chdir(copy)
    run_split(copy)
    assert (project / "mlflow.db").exists()
    assert not (copy / "mlflow.db").exists()
