"""The check that `moe-beyond drift` runs, and its run in MLflow."""

import pytest

from moe_beyond.errors import InputError
from moe_beyond.registry.drift.check import check_drift
from moe_beyond.registry.settings import DriftSettings, PublishSettings
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.traces import store
from tests.traces_of_chance import chance_trace
from tests.tracking.small_pipeline import client, only, points, records, warnings

SETTINGS = PublishSettings(capacity=0.25, drift=DriftSettings(chance_draws=20))


def check(root, against="old.parquet"):
    return check_drift(root, root / "new.parquet", against, SETTINGS, SimulateSettings(), seed=1, log=True)


@pytest.fixture
def traces(project):
    store.write_parquet(chance_trace(20, seed=1), project / "old.parquet")
    store.write_parquet(chance_trace(10, seed=2), project / "new.parquet")
    return project


def test_it_is_a_run_with_its_signals_and_the_index_of_each_layer(traces):
    report = check(traces)
    run = only(traces, "drift")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["drift/drifted"] == float(report.drifted)
    assert run.data.metrics["drift/psi"] == max(report.psi_L)
    assert points(client(traces), run, "drift/psi_by_layer") == list(zip((1, 2, 3), report.psi_L, strict=True))
    assert run.data.tags["drift.against"] == "old.parquet"


def test_without_mlflow_it_says_what_it_found_all_the_same(traces, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert check(traces).window is not None
    assert "MLflow lacks drift" in warnings(caplog)[0]
    assert len(records(traces)) == 1
    with pytest.raises(InputError, match="failed"):
        check(traces, against="champion")
