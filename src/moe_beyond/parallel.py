"""Runs tasks in several processes: this machine's, or those of a Dask or Ray cluster that the environment names.

`DASK_SCHEDULER_ADDRESS` and `RAY_ADDRESS` are these systems' own variables. A cluster's machines need this package, and
what a task reads and writes must lie where all of them find it.
"""

from __future__ import annotations

import importlib
import itertools
import os
import pickle
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

import joblib

from moe_beyond.errors import InputError

Result = TypeVar("Result")
_PATIENCE_S = 10.0


def run_tasks(function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """Call `function` with each task's arguments; results come as they are done, in any order.

    Args:
        function: A module's function, so that other processes find it.
        tasks: Arguments of each call.
        workers: Processes on this machine; a cluster decides for itself.

    Raises:
        InputError: The environment names a cluster whose package is not installed or that does not respond.
    """
    if os.environ.get("RAY_ADDRESS") and not os.environ.get("DASK_SCHEDULER_ADDRESS"):
        yield from _run_on_ray(function, tasks)
        return
    with _dask_cluster() as on_cluster:
        # all of a cluster, whatever `workers` is
        jobs = -1 if on_cluster else workers
        # large arrays come as copies on write: by joblib's default they would be read-only, which compiled loops refuse
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", mmap_mode="c")
        yield from parallel(joblib.delayed(function)(*task) for task in tasks)


def _run_on_ray(function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
    """By Ray itself: its backend of joblib gives results only when all of them are there."""
    ray = _import("ray", "RAY_ADDRESS")
    address = os.environ["RAY_ADDRESS"]
    try:
        _require_response(address)
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except OSError as error:
        raise InputError(f"RAY_ADDRESS: {address} does not respond; start it or unset it") from error
    remote = ray.remote(_call)
    # two tasks a processor: none is idle, and the tasks' arguments do not fill the cluster's memory
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    # pickled here: the arrays that Ray itself hands over are read-only, which compiled loops refuse
    todo = (pickle.dumps((function, task)) for task in tasks)
    under_way = [remote.remote(task) for task in itertools.islice(todo, most)]
    while under_way:
        done, under_way = ray.wait(under_way)
        under_way += [remote.remote(task) for task in itertools.islice(todo, len(done))]
        yield from ray.get(done)


def _call(pickled: bytes) -> Any:
    function, task = pickle.loads(pickled)  # noqa: S301 - our own data, through the cluster that the user named
    return function(*task)


def _require_response(address: str) -> None:
    """Connect first: Ray tries for minutes. `auto` and the like name no host."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_S).close()


@contextmanager
def _dask_cluster() -> Iterator[bool]:
    """Let joblib use the Dask cluster that the environment names; yields whether there is one."""
    if address := os.environ.get("DASK_SCHEDULER_ADDRESS"):
        distributed = _import("distributed", "DASK_SCHEDULER_ADDRESS")
        try:
            client = distributed.Client(address)
        except OSError as error:
            raise InputError(f"DASK_SCHEDULER_ADDRESS: {address} does not respond; start it or unset it") from error
        with client, joblib.parallel_config("dask"):
            yield True
    else:
        yield False


def _import(name: str, variable: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"{variable} is set, but {error.name} is not installed; install it or unset it") from error
