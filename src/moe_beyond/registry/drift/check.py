"""Drift of new traces against a window from files or from the registry, and its run in MLflow."""

from __future__ import annotations

import uuid
from pathlib import Path

from moe_beyond.errors import InputError
from moe_beyond.predictor.baselines import Popularity
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.registry.bundle import MANIFEST, read_manifest
from moe_beyond.registry.drift.report import DriftReport, drift, measure
from moe_beyond.registry.drift.window import COUNTS_FILE, Measures, Window, read_counts, read_window
from moe_beyond.registry.registry import Registry
from moe_beyond.registry.settings import PublishSettings
from moe_beyond.registry.states import only_model
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.traces import store
from moe_beyond.traces.schema import Trace
from moe_beyond.tracking.client import connected, log_run
from moe_beyond.tracking.run_record import STAGE_TAG, Record, now_ms, points


def check_drift(
    root: Path, new: Path, against: str, settings: PublishSettings, simulate: SimulateSettings, *, seed: int, log: bool
) -> DriftReport:
    """Compare new traces, or counts of them, with older traces or a registered predictor's window.

    Args:
        root: The project's root.
        new: Traces, or a CSV of counts.
        against: Traces, a bundle's folder, `champion`, `NAME@champion` or `NAME@VERSION`.
        settings: Limits and capacity.
        simulate: How traces are replayed.
        seed: Of the random divisions, which give the index that chance alone reaches.
        log: Log a run named `drift`.

    Raises:
        InputError: Something cannot be read, is of another model, or MLflow does not respond.
    """
    start_ms = now_ms()
    trace = None if new.suffix == ".csv" else _trace(new)
    usage = read_counts(new) if trace is None else Window.of(trace)
    window, measured = _window(root, against, trace, settings.capacity, simulate)
    report = drift(usage, window, settings.drift, seed, measured=measured)
    if log:
        tags = {STAGE_TAG: "drift", "drift.trace": str(new), "drift.against": against}
        numbers = points(report.metrics())
        for layer, psi in zip(report.layer_numbers, report.psi_L.tolist(), strict=True):
            numbers += points({"drift/psi_by_layer": psi}, step=layer)
        times = {"start_ms": start_ms, "end_ms": now_ms()}
        log_run(root, Record(key=uuid.uuid4().hex, name="drift", tags=tags, metrics=tuple(numbers), **times))
    return report


def _window(
    root: Path, against: str, trace: Trace | None, capacity: float, simulate: SimulateSettings
) -> tuple[Window, tuple[Measures, Measures] | None]:
    """The window's usage, and replays of the new traces and of the window where there are traces to replay."""
    path = root / against
    if path.exists() and not (path / COUNTS_FILE).exists():
        older = _trace(path)
        if trace is None:
            return Window.of(older), None
        trace.metadata.require_same_model(older.metadata, against)
        # what counts alone would predict: no fit that could flatter the window it was fitted on
        popularity = Popularity.fit(older)
        replays = [measure(t, popularity, capacity, simulate, prefetch=False) for t in (trace, older)]
        return Window.of(older), (replays[0], replays[1])
    folder = path if path.exists() else _bundle(root, against)
    if (folder / MANIFEST).exists():
        read_manifest(folder)  # refuses a newer layout
    window, then = read_window(folder)
    if trace is None:
        return window, None
    now = measure(trace, OnnxPredictor(folder / "predictor"), capacity, simulate, prefetch=True)
    if now.capacity_experts != then.capacity_experts:
        raise InputError(
            f"publish.capacity: {now.capacity_experts} experts here, {then.capacity_experts} when {against} was "
            "registered; set it back, or publish anew"
        )
    return window, (now, then)


def _bundle(root: Path, against: str) -> Path:
    model, _, alias = against.rpartition("@")
    with connected(root) as connection:
        registry = Registry(connection.client, model or only_model(connection.client))
        return registry.bundle_of(registry.version(alias))


def _trace(path: Path) -> Trace:
    return store.open_working(path) if store.has_working(path) else store.read_parquet(path)
