"""Runs tasks in several processes: this machine's, or those of a Dask or Ray cluster that the environment names.

`DASK_SCHEDULER_ADDRESS` and `RAY_ADDRESS` are these systems' own variables. A cluster's machines need this package, and
what a task reads and writes must lie where all of them find it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

import joblib

from moe_beyond.errors import InputError

Result = TypeVar("Result")


def run_tasks(function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """Call `function` with each task's arguments; results come as they are done, in any order.

    Args:
        function: A module's function, so that other processes find it.
        tasks: Arguments of each call.
        workers: Processes on this machine; a cluster decides for itself.

    Raises:
        InputError: The environment names a cluster whose package is not installed or that does not answer.
    """
    with _cluster() as on_cluster:
        # all of a cluster, also for who leaves `workers` at 1
        parallel = joblib.Parallel(n_jobs=-1 if on_cluster else workers, return_as="generator_unordered")
        yield from parallel(joblib.delayed(function)(*task) for task in tasks)


@contextmanager
def _cluster() -> Iterator[bool]:
    """Let joblib use the cluster that the environment names; yields whether there is one."""
    if address := os.environ.get("DASK_SCHEDULER_ADDRESS"):
        distributed = _import("distributed", "DASK_SCHEDULER_ADDRESS")
        try:
            client = distributed.Client(address)
        except OSError as error:
            raise InputError(f"DASK_SCHEDULER_ADDRESS: {address} does not answer; start it or unset it") from error
        with client, joblib.parallel_config("dask"):
            yield True
    elif os.environ.get("RAY_ADDRESS"):
        _import("ray.util.joblib", "RAY_ADDRESS").register_ray()
        with joblib.parallel_config("ray"):
            yield True
    else:
        yield False


def _import(name: str, variable: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"{variable} is set, but {error.name} is not installed; install it or unset it") from error
