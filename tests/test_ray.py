"""Shards and replays on a Ray cluster of two workers on this machine, which is joined by its address as any other."""

from pathlib import Path

import pytest

from moe_beyond.capture.shards import capture
from moe_beyond.parallel import run_tasks
from moe_beyond.simulator.study.study import Charged, replay_splits
from moe_beyond.simulator.study.tables import all_tables
from tests.capture.capture_case import case_job, case_prompts, file_bytes, save_tiny_model
from tests.simulator.study.cases import SETTINGS, PartlyRight, drawn
from tests.test_parallel import check_that_tasks_run_once_in_other_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster():
    """Its address, in the environment for as long as the tests run."""
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # it listens on this machine alone
        paths = {"PYTHONPATH": str(Path(__file__).parents[1])}
        context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": paths})
        patch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
        patch.setenv("RAY_ADDRESS", context.address_info["address"])
        yield
        ray.shutdown()


def test_every_task_runs_once_in_another_process_and_its_error_is_an_error_here(cluster):
    check_that_tasks_run_once_in_other_processes()
    with pytest.raises(ZeroDivisionError):
        list(run_tasks(divmod, [(1, 1), (1, 0)], workers=1))


def test_shards_are_the_same_to_the_byte(tmp_path, cluster, monkeypatch):
    model = save_tiny_model(tmp_path / "model")
    capture(case_job(model), case_prompts(), tmp_path, tmp_path / "by_ray")
    monkeypatch.delenv("RAY_ADDRESS")
    capture(case_job(model), case_prompts(), tmp_path, tmp_path / "here")
    assert file_bytes(tmp_path / "by_ray") == file_bytes(tmp_path / "here")


def test_replays_count_and_time_the_same(cluster, monkeypatch):
    study = ({"test": drawn(1)}, drawn(3), drawn(4), [Charged(PartlyRight(0.5), 0.3, 0.05)], SETTINGS)
    by_ray = all_tables(replay_splits(*study), 7)
    monkeypatch.delenv("RAY_ADDRESS")
    here = all_tables(replay_splits(*study), 7)
    assert all(by_ray[name].equals(here[name]) for name in here)
