"""The whole pipeline with tiny parameters in a clone of the last commit: DVC, MLflow and the page agree.

One story in one clone, told in order: run it with `-p no:randomly`, as `make smoke` does.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml
from mlflow.tracking import MlflowClient

from moe_beyond.devices.device import load_device
from moe_beyond.settings import STAGES, flatten
from moe_beyond.tracking.dvc import read_stage
from tests.tracking.small_pipeline import artifacts

ROOT = Path(__file__).parents[1]
RUNS = [stage for stage in STAGES if stage != "publish"]  # which always runs, and logs the pipeline's run
_MODEL = {"hidden_size": 32, "moe_layers": 2, "num_experts": 8, "top_k": 2, "expert_width": 8, "vocabulary_size": 512}
_PROMPTS = {"english_prompts": 40, "code_prompts": 8, "max_prompt_tokens": 32, "decode_tokens": 12}
TINY = flatten(
    {
        "reference": _MODEL | {"tokens": 20_000, "validation_tokens": 2_000},
        "extract": _PROMPTS | {"batch_prompts": 20, "shard_prompts": 20},
        "assess": {"max_curve_tokens": 500},
        "tune": {"trials": 2, "epochs": 1, "space": {"width": "[16,32]", "depth": "[1]", "heads": "[2]"}},
        "train": {"epochs": 2, "window": 16},
        "export": {"parity_tokens": 40},
        "simulate": {"capacities": "[0.25,0.5,0.75]", "timed_capacities": "null", "headline_capacity": 0.5}
        | {"bootstrap_samples": 100},
        "verify": {"prompts": 1, "tokens": 4, "quality_prompts": 2, "quality_prefill": 4, "quality_tokens": 8},
    }
)
OVERRIDES = [word for key, value in TINY.items() for word in ("-S", f"++{key}={value}")]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def environment_of(project):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_"))}
    environment |= {f"GIT_{who}_NAME": "test" for who in ("AUTHOR", "COMMITTER")}
    environment |= {f"GIT_{who}_EMAIL": "test@example.invalid" for who in ("AUTHOR", "COMMITTER")}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(project / "src")}
    return environment | {"DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


def call(project, *command, check=True, **forced):
    environment = environment_of(project) | forced
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    if check and done.returncode:
        pytest.fail(f"{' '.join(command)} gave {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def stages_run(output):
    return re.findall(r"Running stage '(\w+)'", output)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A clone in which the pipeline ran once."""
    clone = tmp_path_factory.mktemp("clone") / "project"
    call(ROOT, "git", "clone", "-q", str(ROOT), str(clone))
    done = call(clone, "dvc", "exp", "run", "-f", *OVERRIDES)
    assert stages_run(done.stdout) == list(STAGES)
    return clone


@pytest.fixture(scope="module")
def mlflow(project):
    return MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


def runs_with(mlflow, tag, value):
    """Newest first."""
    experiment = mlflow.get_experiment_by_name("moe-beyond").experiment_id
    return mlflow.search_runs([experiment], f"tags.`{tag}` = '{value}'", order_by=["start_time DESC"])


def pipeline_runs(mlflow):
    return runs_with(mlflow, "moe_beyond.stage", "pipeline")


def test_everything_is_reached_from_the_pipelines_run(project, mlflow):
    run = pipeline_runs(mlflow)[0]
    own = set(artifacts(mlflow, run.info.run_id))
    assert {"models/predictor/token_step.onnx", "reports/index.html"} <= own
    for stage in RUNS:
        stage_run = mlflow.get_run(run.data.tags[f"run.{stage}"])
        logged = set(artifacts(mlflow, stage_run.info.run_id))
        for out in read_stage(project / "dvc.yaml", stage).outs:
            if out.endswith("/run.json"):  # made from the run's key
                continue
            path = project / out
            files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
            assert {file.relative_to(project).as_posix() for file in files} <= logged
        metrics_file = project / "reports" / stage / "metrics.json"
        if metrics_file.exists():
            values = flatten(json.loads(metrics_file.read_text()), "/").items()
            # MLflow's metrics are numbers; a reason in words comes with the file
            numbers = {name.removesuffix("/value"): value for name, value in values if isinstance(value, int | float)}
            assert numbers
            assert stage_run.data.metrics.items() >= numbers.items()
            assert metrics_file.relative_to(project).as_posix() in logged
        assert stage_run.data.params or stage == "assess"


def test_mlflow_dvc_and_the_page_show_the_same_numbers(project, mlflow):
    shown = json.loads(call(project, "dvc", "metrics", "show", "--json").stdout)
    (from_dvc,) = (file["data"] for file in shown[""]["data"].values())
    from_mlflow = pipeline_runs(mlflow)[0].data.metrics
    assert len(from_dvc) >= 12
    for name, interval in from_dvc.items():
        assert from_mlflow[name] == interval["value"]
    assert f"{100 * from_mlflow['hit_rate']:.1f}" in (project / "reports/index.html").read_text()


def test_no_table_charges_less_than_was_measured(project):
    """Every table of every stage that names what is charged for our predictor or for the table of tokens."""
    measured = json.loads((project / "reports/export/latency.json").read_text())["measured"]
    trials = pl.read_csv(project / "reports/tune/trials.csv")
    chosen = yaml.safe_load((project / "reports/tune/best.yaml").read_text())
    tried = trials.filter(**{name: chosen[name] for name in ("width", "depth", "heads")})
    assert tried["token_step_ms"].item() >= measured["token_step_ms"]
    seen = set()
    for path in (project / "reports").glob("*/tables/*.parquet"):
        rows = pl.read_parquet(path)
        if "token_step_ms" not in rows.columns:
            continue
        for row in rows.drop_nulls("token_step_ms").iter_rows(named=True):
            slowdown = load_device(row["device"]).predictor_slowdown
            predictor = row.get("predictor", "predictor")
            steps = {
                "predictor": ("token_step_ms", "hidden_step_ms"),
                "predictor_without_hidden_states": ("token_step_ms", "layer_step_ms"),
                "token_unigram": ("table_ms", "layer_step_ms"),
            }
            # what reads hidden states and is not ours is measured by this very stage
            least = [measured[step] * slowdown for step in steps.get(predictor, ())] or [0, 0]
            assert row["token_step_ms"] >= least[0], (path, row)
            assert row["layer_step_ms"] >= least[1] or not row.get("ahead_of_layers", row["layer_step_ms"]), (path, row)
            seen.add((path.stem, predictor))
    ours = {(table, "predictor") for table in ("on_device", "pays", "ablation")}
    assert seen >= ours | {("on_device", "token_unigram")}


def test_nothing_to_do_runs_nothing(project):
    done = call(project, "dvc", "repro")
    assert stages_run(done.stdout) == ["publish"]
    assert "gate: unchanged: this very predictor is the champion, version 1" in done.stderr


def test_trials_are_children_of_the_tuning_run(mlflow):
    children = runs_with(mlflow, "mlflow.parentRunId", pipeline_runs(mlflow)[0].data.tags["run.tune"])
    assert {child.info.run_name for child in children} >= {"trial-0"}
    assert all("recall_at_k" in child.data.metrics and "width" in child.data.params for child in children)


def test_a_simulator_parameter_reruns_what_follows_it_and_makes_a_second_pipeline_run(project, mlflow):
    before = pipeline_runs(mlflow)
    done = call(project, "dvc", "exp", "run", "-S", "simulate.headline_capacity=0.25")
    assert stages_run(done.stdout) == ["simulate", "verify", "report", "publish"]
    assert stages_run(call(project, "dvc", "repro").stdout) == ["publish"]
    after = pipeline_runs(mlflow)
    assert len(after) == len(before) + 1
    first, second = before[0].data, after[0].data
    assert second.params["simulate.headline_capacity"] == "0.25"
    assert second.tags["run.train"] == first.tags["run.train"]
    assert second.tags["run.simulate"] != first.tags["run.simulate"]
    # a state that was there before comes from DVC's cache: nothing is computed, and no third run appears
    done = call(project, "dvc", "exp", "run", "-S", f"simulate.headline_capacity={TINY['simulate.headline_capacity']}")
    assert stages_run(done.stdout) == ["publish"]
    assert len(pipeline_runs(mlflow)) == len(after)


def test_bad_input_is_one_line_and_former_outs_stay(project):
    params = project / "params.yaml"
    good = params.read_text()
    params.write_text(re.sub("test_fraction: .*", "test_fraction: 1.5", good))
    before = (project / "data/splits/prompts.csv").read_bytes()
    done = call(project, "dvc", "repro", check=False)
    params.write_text(good)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: params.yaml: split.test_fraction: Input should be less than 1 (found 1.5)"]
    assert "Traceback" not in done.stderr
    assert (project / "data/splits/prompts.csv").read_bytes() == before
    assert (project / "data/splits/train/trace.json").exists()
    assert stages_run(call(project, "dvc", "repro").stdout) == ["publish"]


def test_a_killed_stage_leaves_its_outs_whole_and_runs_again(project):
    shutil.rmtree(project / ".scratch", ignore_errors=True)
    before = (project / "reports/train/metrics.json").read_bytes()
    environment = os.environ | {"PYTHONPATH": str(project / "src"), "MLFLOW_TRACKING_URI": ""}
    command = [sys.executable, "-m", "moe_beyond.tracking", "train"]
    with pytest.raises(subprocess.TimeoutExpired):  # after which it is killed
        subprocess.run(command, cwd=project, env=environment, timeout=6, check=False)
    assert (project / "reports/train/metrics.json").read_bytes() == before
    call(project, "dvc", "repro", "-f", "-s", "train")
    assert (project / "reports/train/metrics.json").read_bytes() == before
