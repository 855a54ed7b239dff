"""Retraining as a person and CI do it, with tiny parameters: which predictor becomes champion, and rollback.

One story in a temporary clone of the last commit, in order: run it with `-p no:randomly`. Only a DVC remote (a
folder) and an MLflow store outlive a clone.
"""

import json
import shutil
import sys

import pytest
from mlflow.tracking import MlflowClient

from moe_beyond.settings import flatten
from tests.test_end_to_end import ROOT, TINY, call, stages_run

NAME = "moe-beyond.moe-beyond-reference.phone_oneplus_15r"
# one trial, and as few capacities as make a curve: the gate is what is tried here
GATE = {"capacity": 0.5, "bootstrap_samples": 200, "latency_repeats": 20, "metric": "recall_at_k", "margin": 0.0}
GATE |= {"max_worst_domain_loss": 0.2}  # at a few tokens hit rates say little
SEARCH = {"tune.trials": 1, "tune.space.width": "[32]"}
REPLAYS = {"simulate.capacities": "[0.25,0.5]", "simulate.devices": "[phone_oneplus_15r]"}
SMALLEST = TINY | SEARCH | REPLAYS | flatten({"publish": GATE})

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Story:
    """A project with its remote and its store."""

    def __init__(self, folder):
        self.remote, self.database = folder / "remote", folder / "mlflow.db"
        self.remote.mkdir()
        self.uri = f"sqlite:///{self.database}"
        self.project = folder / "project"
        self.client = MlflowClient(self.uri)
        call(ROOT, "git", "clone", "-q", str(ROOT), str(self.project))

    def retrain(self, settings=None, gate="move"):
        """`.ci/retrain`, as `make retrain` calls it once the environment exists."""
        chosen = " ".join(f"{key}={value}" for key, value in (settings or {}).items())
        mlflow = {"MLFLOW_TRACKING_URI": self.uri, "MOE_BEYOND_GATE": gate}
        return call(self.project, ".ci/retrain", SET=chosen, REMOTE=str(self.remote), BASE="HEAD", **mlflow)

    def moe_beyond(self, *words, check=True):
        command = [sys.executable, "-c", "from moe_beyond.cli import main; main()", *words]
        return call(self.project, *command, check=check, MLFLOW_TRACKING_URI=self.uri)

    def aliases(self):
        return {a: str(self.client.get_model_version_by_alias(NAME, a).version) for a in ("champion", "challenger")}

    def verdict(self):
        return json.loads((self.project / "reports/publish/verdict.json").read_text())


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    return Story(tmp_path_factory.mktemp("story"))


def test_the_first_predictor_becomes_the_champion(story):
    story.retrain(SMALLEST)
    assert story.verdict()["outcome"] == "first"
    assert story.aliases() == {"champion": "1", "challenger": "1"}
    report = (story.project / "reports/retrain.md").read_text()
    words = ("the first champion", "| `train.epochs` | `8` | `2` |", "| ms_per_token | ", "(figures/ms_per_token.png)")
    assert all(part in report for part in words)


def test_a_worse_parameter_makes_a_challenger_that_is_refused_with_reasons(story):
    done = story.retrain({"train.learning_rate": 1e-6})
    assert stages_run(done.stdout)[-6:] == ["train", "export", "simulate", "verify", "report", "publish"]
    assert story.aliases() == {"champion": "1", "challenger": "2"}
    tags = story.client.get_model_version(NAME, "2").tags
    assert tags["gate"] == "refused"
    assert "fails: recall_at_k improves by more than 0.00%" in tags["gate.reasons"]
    metrics = json.loads((story.project / "reports/publish/metrics.json").read_text())
    assert metrics["moves_champion"] == 0
    assert metrics["challenger"]["recall_at_k"] < metrics["champion"]["recall_at_k"]
    run = story.client.get_run(story.verdict()["pipeline_run"])
    assert (run.data.tags["gate.outcome"], run.data.tags["gate.challenger"]) == ("refused", "2")


def test_a_better_one_is_judged_before_its_merge_and_takes_over_after_it(story):
    better = {"train.learning_rate": 0.01, "train.epochs": 12, "train.patience": 12}
    story.retrain(better, gate="judge")
    verdict = story.verdict()
    assert verdict["outcome"] == "promoted"
    assert story.aliases() == {"champion": "1", "challenger": "3"}
    assert verdict["improvement"]["low"] > 0
    done = story.retrain()
    assert stages_run(done.stdout) == ["publish"]
    assert story.verdict() == verdict | {"champion": "3"}
    assert story.aliases() == {"champion": "3", "challenger": "3"}
    pipeline = story.client.get_run(story.client.get_model_version(NAME, "3").tags["run.pipeline"])
    assert (pipeline.data.params["train.epochs"], pipeline.data.params["chosen.width"]) == ("12", "32")


def test_drift_is_an_exit_status(story):
    for split in ("validation", "test_out_of_domain"):
        done = story.moe_beyond("drift", f"data/splits/{split}", "--json", check=False)
        assert done.returncode == (3 if json.loads(done.stdout)["drifted"] else 0), done.stderr


def test_rollback_restores_the_champion_before(story):
    back = json.loads(story.moe_beyond("rollback", "--json").stdout)
    assert back == {"registered_model": NAME, "left": "3", "champion": "1"}
    assert story.aliases()["champion"] == "1"
    assert "rolled_back" in story.client.get_model_version(NAME, "3").tags
    again = story.moe_beyond("rollback", check=False)
    assert again.returncode == 1
    assert "version 1 is the first champion" in again.stderr


def test_a_clean_clone_needs_nothing_but_the_remote_and_the_store(story):
    files = ("dvc.lock", "params.yaml", "reports/train/run.json")
    lock, params, former = ((story.project / name).read_text() for name in files)
    shutil.rmtree(story.project)
    call(ROOT, "git", "clone", "-q", str(ROOT), str(story.project))
    (story.project / "dvc.lock").write_text(lock)
    (story.project / "params.yaml").write_text(params)
    done = story.retrain({"publish.max_worst_domain_loss": 0.5})
    # what was trained before comes from the remote; the gate alone runs
    assert stages_run(done.stdout) == ["publish"]
    assert (story.project / "reports/train/run.json").read_text() == former
    verdict = story.verdict()
    assert (verdict["outcome"], verdict["champion"]) == ("refused", "1")
    assert "rolled back on" in verdict["reasons"][0]
