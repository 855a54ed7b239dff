"""A project of one small stage under a real stage's name, and what MLflow holds of it."""

import logging
from pathlib import Path

import yaml
from mlflow.tracking import MlflowClient

from moe_beyond.tracking.__main__ import run_stage
from moe_beyond.tracking.client import send
from moe_beyond.tracking.run_record import FOLDER

PARAMS = Path(__file__).parents[2] / "params.yaml"
STAGE = """
from moe_beyond.data.settings import SplitSettings
from moe_beyond.errors import InputError
from moe_beyond.files import replacing
from moe_beyond.settings import Seed, Settings

FILES = {
    "metrics.json": '{"splits": {"train": {"prompts": 3}}, "ok": true, "why": "words", "none": null}',
    "history.csv": "step,loss,recall\\n1,2.0,\\n2,1.0,0.5\\n",
    "trials.csv": "trial,state,width,train.loss,recall_at_k,use\\n"
    "0,complete,8,bce,0.25,both\\n1,pruned,16,bce,,\\n2,fail,4,bce,,\\n",
    "epochs.csv": "trial,epoch,loss\\n0,0,2.0\\n0,1,1.5\\n1,0,3.0\\n",
}
class Params(Settings):
    seed: Seed
    split: SplitSettings = SplitSettings()

def main(root, params):
    if (root / "bad").exists():
        raise InputError((root / "bad").read_text())
    for folder in ("data/splits/train", "reports/split"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "data/splits/train/x.npy").write_text((root / "data/traces/a.txt").read_text())
    for name, text in FILES.items():
        # whole at once, as every stage writes: other processes may read it
        with replacing(root / "reports/split" / name) as temporary:
            temporary.write_text(text)
"""
OUTS = [f"reports/split/{name}" for name in ("metrics.json", "history.csv", "trials.csv", "epochs.csv")]


def write_project(root):
    deps, params = ["data/traces", "stages/split.py"], ["seed", "split", {"chosen.yaml": None}]
    stage = {"cmd": "x", "deps": deps, "params": params, "outs": ["data/splits", "reports/split/run.json", *OUTS]}
    for folder in ("stages", "data/traces"):
        (root / folder).mkdir(parents=True)
    files = {
        "dvc.yaml": yaml.safe_dump({"stages": {"split": stage}}),
        "params.yaml": PARAMS.read_text(),
        "chosen.yaml": "width: 8\n",
        "stages/split.py": STAGE,
        "data/traces/a.txt": "a",
    }
    for name, text in files.items():
        (root / name).write_text(text)


def run_split(root):
    run_stage(root, "split")


def client(root):
    return MlflowClient(f"sqlite:///{root / 'mlflow.db'}")


def runs(root, to=None):
    """Every run of the experiment with its name, oldest first."""
    to = to or client(root)
    experiment = to.get_experiment_by_name("moe-beyond")
    found = [] if experiment is None else to.search_runs([experiment.experiment_id], order_by=["start_time ASC"])
    return [(run.info.run_name, run) for run in found]


def only(root, name, to=None):
    (run,) = [run for found, run in runs(root, to) if found == name]
    return run


def artifacts(to, run_id, path=None):
    for entry in to.list_artifacts(run_id, path):
        yield from artifacts(to, run_id, entry.path) if entry.is_dir else [entry.path]


def points(to, run, name):
    return [(point.step, point.value) for point in to.get_metric_history(run.info.run_id, name)]


def records(root):
    return sorted((root / FOLDER).glob("*.json"))


def readdress(root, old, new):
    """Make the records that wait for one address wait for another one."""
    for path in records(root):
        path.write_text(path.read_text().replace(f'"address":"{old}"', f'"address":"{new}"'))


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def check_whole(root, to=None):
    """MLflow has the stage's run and its three trials, each once, ended, with every point once; nothing waits."""
    assert not send(root).sentences()
    assert records(root) == []
    to = to or client(root)
    status = sorted((name, run.info.status) for name, run in runs(root, to))
    assert status == [("split", "FINISHED"), ("trial-0", "FINISHED"), ("trial-1", "KILLED"), ("trial-2", "FAILED")]
    run = only(root, "split", to)
    assert run.data.params["split.test_fraction"] == "0.05"
    assert run.data.metrics["splits/train/prompts"] == 3
    assert points(to, run, "loss") == [(1, 2.0), (2, 1.0)]
    assert points(to, only(root, "trial-0", to), "loss") == [(0, 2.0), (1, 1.5)]
    assert [data.dataset.name for data in run.inputs.dataset_inputs] == ["data.traces"]
    assert set(artifacts(to, run.info.run_id)) == {"data/splits/train/x.npy", *OUTS}
