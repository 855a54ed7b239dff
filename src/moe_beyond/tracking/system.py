"""Processor, memory, disk, network and GPU over a run's time, through the client that outlives the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.entities import Metric
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from moe_beyond.tracking.client import PatientClient


@contextmanager
def system_metrics(client: PatientClient, run_id: str) -> Iterator[None]:
    """Log the machine's load to a run, every few seconds, inside the `with`."""
    ended = threading.Event()
    # not by its own `start`: that ends at the first request that fails
    monitor = SystemMetricsMonitor(run_id, tracking_uri=client.uri)
    thread = threading.Thread(target=_sample, args=(monitor, client, run_id, ended), daemon=True, name="system-metrics")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _sample(monitor: SystemMetricsMonitor, client: PatientClient, run_id: str, ended: threading.Event) -> None:
    step = 0
    while not ended.wait(monitor.sampling_interval):
        monitor.collect_metrics()
        now = int(time.time() * 1000)
        sampled = monitor.aggregate_metrics()
        client.log_batch(
            run_id, metrics=[Metric(f"system/{name}", value, now, step) for name, value in sampled.items()]
        )
        for part in monitor.monitors:
            part.clear_metrics()
        step += 1
