import json

from moe_beyond.params import load_params
from moe_beyond.tracking import pipeline_run, stage_run
from tests.tracking.test_stage import all_runs, artifacts, client, run_split


def run_report(project):
    with (
        stage_run("report", load_params) as run,
        pipeline_run(run, ["reports/index.html", "data/splits"]) as pipeline_id,
    ):
        (project / "reports/index.html").write_text("<p>page</p>")
    return run.run_id, pipeline_id


def test_every_stages_run_is_reached_from_the_pipelines(project):
    split_id = run_split(project)
    report_id, pipeline_id = run_report(project)
    run = client(project).get_run(pipeline_id)
    assert run.info.status == "FINISHED"
    assert (run.data.tags["run.split"], run.data.tags["run.report"]) == (split_id, report_id)
    assert run.data.params["train.epochs"] == "20"
    assert split_id in run.data.tags["mlflow.note.content"]
    assert set(artifacts(project, pipeline_id)) == {"reports/index.html", "data/splits/train/x.npy", "stage_runs.json"}
    for stage_id in (split_id, report_id):
        assert client(project).get_run(stage_id).data.tags["mlflow.parentRunId"] == pipeline_id


def test_a_stage_that_dvc_took_from_its_cache_keeps_its_run_and_its_first_parent(project):
    split_id = run_split(project)
    _, first = run_report(project)
    _, second = run_report(project)
    assert client(project).get_run(second).data.tags["run.split"] == split_id
    assert client(project).get_run(split_id).data.tags["mlflow.parentRunId"] == first


def test_outs_fetched_from_elsewhere_are_logged_once_more(project):
    run_split(project)
    receipt = project / "reports/split/run.json"
    receipt.write_text(json.dumps({"run_id": "f" * 32}))
    _, pipeline_id = run_report(project)
    mirrored = client(project).get_run(client(project).get_run(pipeline_id).data.tags["run.split"])
    assert mirrored.data.tags["restored"] == "true"
    assert mirrored.data.tags["original_run_id"] == "f" * 32
    assert mirrored.data.metrics["recall"] == 0.5
    assert mirrored.data.params["split.test_fraction"] == "0.1"
    assert "data/splits/train/x.npy" in set(artifacts(project, mirrored.info.run_id))


def test_a_report_that_fails_marks_the_pipelines_run_failed(project):
    run_split(project)
    try:
        with stage_run("report", load_params) as run, pipeline_run(run, []):
            raise OSError
    except OSError:
        pass
    status = {run.info.run_name.split()[0]: run.info.status for run in all_runs(project)}
    assert status == {"split": "FINISHED", "report": "FAILED", "pipeline": "FAILED"}
