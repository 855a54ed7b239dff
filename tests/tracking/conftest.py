from pathlib import Path

import pytest
import yaml

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml and a dvc.yaml of two small stages under real stage names."""
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_STAGE", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "params.yaml").write_text(PARAMS.read_text())
    stages = {
        "split": {
            "cmd": "x",
            "deps": ["data/traces"],
            "params": ["seed", "split"],
            "outs": ["data/splits", "reports/split/run.json"],
            "metrics": ["reports/split/metrics.json"],
        },
        "report": {
            "cmd": "x",
            "deps": ["data/splits"],
            "params": ["report"],
            "outs": ["reports/index.html", "reports/report/run.json"],
        },
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (tmp_path / "data/traces").mkdir(parents=True)
    (tmp_path / "data/traces/a.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    return tmp_path
