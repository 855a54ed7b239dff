"""Tasks in other processes, and the error of a cluster that cannot be used."""

import os
from importlib.util import find_spec

import numpy as np
import pytest

from moe_beyond.errors import InputError
from moe_beyond.parallel import run_tasks


def place(number):
    return number, os.getpid()


def check_that_tasks_run_once_in_other_processes():
    results = list(run_tasks(place, [(number,) for number in range(9)], workers=2))
    assert sorted(number for number, _ in results) == list(range(9))
    assert os.getpid() not in {process for _, process in results}


def test_every_task_runs_once_in_another_process(monkeypatch):
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_that_tasks_run_once_in_other_processes()


def is_writable(array):
    return bool(array.flags.writeable)


def test_large_arrays_are_not_read_only_there():
    """Compiled loops take no read-only arrays, and joblib shares what is larger than a megabyte."""
    assert list(run_tasks(is_writable, [(np.zeros(300_000),), (np.zeros(3),)], workers=2)) == [True, True]


@pytest.mark.parametrize(("variable", "package"), [("DASK_SCHEDULER_ADDRESS", "distributed"), ("RAY_ADDRESS", "ray")])
def test_a_cluster_without_its_package_is_an_input_error(monkeypatch, variable, package):
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    monkeypatch.setenv(variable, "tcp://127.0.0.1:1")
    with pytest.raises(InputError, match=f"{variable} is set, but {package} is not installed"):
        list(run_tasks(place, [(1,)], workers=2))


def test_a_ray_cluster_that_does_not_answer_is_an_input_error(monkeypatch):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match=r"RAY_ADDRESS: 127\.0\.0\.1:1 does not respond; start it or unset it"):
        list(run_tasks(place, [(1,)], workers=2))


def test_tasks_run_on_a_dask_cluster(monkeypatch):
    distributed = pytest.importorskip("distributed", reason="the optional package distributed is not installed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
        check_that_tasks_run_once_in_other_processes()
