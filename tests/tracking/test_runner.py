"""A stage is run, and then logged from the files that it wrote."""

import json
import sys

import pytest

from moe_beyond.errors import InputError
from moe_beyond.files import folder_digest
from moe_beyond.tracking.__main__ import main
from tests.tracking.small_pipeline import check_whole, client, only, points, run_split, runs, write_project


def test_a_run_holds_params_metrics_curves_data_sets_artifacts_versions_and_its_trials(project):
    run_split(project)
    check_whole(project)
    run = only(project, "split")
    assert (run.data.params["seed"], run.data.params["chosen.width"]) == ("7", "8")
    assert not any(name.startswith("train.") for name in run.data.params)
    assert run.data.metrics["ok"] == 1
    assert not {"why", "none", "step"} & set(run.data.metrics)
    assert points(client(project), run, "recall") == [(2, 0.5)]
    assert run.data.metrics["system/peak_memory_mib"] > 10
    assert run.inputs.dataset_inputs[0].dataset.digest == folder_digest(project / "data/traces")
    assert run.data.tags["version.torch"].startswith("2.")
    trial = only(project, "trial-0")
    assert trial.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert (trial.data.params, trial.data.tags["split.use"]) == ({"width": "8", "train.loss": "bce"}, "both")
    assert trial.data.metrics == {"recall_at_k": 0.25, "loss": 1.5}


def test_the_same_result_is_the_same_run_and_another_one_another(project):
    run_split(project)
    receipt = (project / "reports/split/run.json").read_bytes()
    run_split(project)
    check_whole(project)
    assert (project / "reports/split/run.json").read_bytes() == receipt
    assert only(project, "split").data.tags["moe_beyond.key"] == json.loads(receipt)["key"]
    (project / "data/traces/a.txt").write_text("b")
    run_split(project)
    assert [name for name, _ in runs(project)].count("split") == 2
    assert (project / "reports/split/run.json").read_bytes() != receipt


def test_bad_input_is_one_line_a_failed_run_and_no_receipt(project, capsys, monkeypatch):
    (project / "bad").write_text("prompts.jsonl: line 3: no 'prompt'; add it")
    monkeypatch.setattr(sys, "argv", ["tracking", "split"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: prompts.jsonl: line 3: no 'prompt'; add it\n"
    run = only(project, "split")
    assert run.info.status == "FAILED"
    assert run.data.tags["moe_beyond.error"].startswith("prompts.jsonl")
    assert not (project / "reports/split/run.json").exists()


@pytest.mark.parametrize(
    ("change", "error", "runs_failed"),
    [
        ("stages/split.py: FILES.items() -> missing", NameError, 1),
        ("dvc.yaml: - data/splits -> - data/more", InputError, 1),
        ("params.yaml: test_fraction: 0.05 -> test_fraction: 2", InputError, 0),
        ("dvc.yaml: split: -> other:", InputError, 0),
    ],
)
def test_a_crash_passes_and_what_ends_before_the_stage_makes_no_run(project, change, error, runs_failed):
    file, _, lines = change.partition(": ")
    old, new = lines.split(" -> ")
    text = (project / file).read_text()
    assert old in text
    (project / file).write_text(text.replace(old, new, 1))
    with pytest.raises(error):
        run_split(project)
    assert [run.info.status for _, run in runs(project)] == runs_failed * ["FAILED"]
    assert not (project / "reports/split/run.json").exists()


def test_a_further_process_of_a_fit_does_its_part_and_logs_nothing(project, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    run_split(project)
    assert (project / "data/splits/train/x.npy").exists()
    assert not (project / "reports/split/run.json").exists()
    assert runs(project) == []


def test_a_throw_away_copy_logs_to_the_main_checkout(project, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    write_project(copy)
    monkeypatch.setenv("DVC_ROOT", str(project))
    run_split(copy)
    check_whole(project)
    assert not (copy / "mlflow.db").exists()
