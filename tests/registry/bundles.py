"""A project's outs, as far as a bundle is made of them, around an exported predictor."""

import json
import shutil

import polars as pl

from moe_beyond.registry.bundle import Origin, write_bundle
from moe_beyond.registry.drift.window import Measures, Window
from moe_beyond.registry.settings import PublishSettings

RECALL = {"predictor": 0.8, "token_unigram": 0.7, "popularity": 0.2, "previous_token": 0.3}
TIMING = {
    "split": ["test_in_domain"] * 5,
    "device": ["laptop_nvme"] * 5,
    "policy": ["lru", "predictor_prefetch_lru", "predictor_prefetch_lru", "mote", "belady"],
    "capacity_experts": [5] * 5,
    "predictor_ms": [0.1, 0.1, 2.0, 0.1, 0.1],
    "ms_per_token": [9.0, 8.0, 8.5, 2.0, 7.0],
    "tokens_per_second": [111.0, 125.0, 117.0, 500.0, 142.0],
    "fraction_of_bound": [0.5, 0.6, 0.55, 2.0, 0.7],
    "break_even_latency_ms": [None, 1.5, 1.5, None, None],
}
REPLAY = {
    "split": ["test_in_domain"] * 4,
    "policy": ["lru", "predictor_prefetch_lru", "mote", "belady"],
    "capacity_experts": [5] * 4,
    "mass_given_up": [0.0, 0.0, 1.0, 0.0],
}


def small_project(root, predictor):
    """Write models/predictor and the reports that a bundle reads."""
    shutil.copytree(predictor, root / "models/predictor")
    for stage in ("assess", "export", "simulate"):
        (root / "reports" / stage).mkdir(parents=True)
    (root / "reports/assess/card.json").write_text(json.dumps({"verdict": "go", "reasons": ["it pays"]}))
    (root / "reports/export/metrics.json").write_text(
        json.dumps({"recall_at_k": {"test_in_domain": RECALL}, "latency_ms": 0.2})
    )
    for name in ("calibration", "width", "quality"):
        (root / f"reports/export/{name}.csv").write_text("a\n1\n")
    pl.DataFrame(TIMING).write_csv(root / "reports/simulate/timing.csv")
    pl.DataFrame(REPLAY).write_csv(root / "reports/simulate/replay.csv")


def small_bundle(folder, root, trace, settings=None):
    """A bundle of `small_project`."""
    origin = Origin({"data/traces": "abc.dir"}, {"git.commit": "c" * 40, "git.dirty": "true"}, {"train": "r"}, 7)
    window = (Window.of(trace), Measures("predictor", 0.8, 0.6, 0.3, 5))
    return write_bundle(folder, root, trace.metadata, settings or PublishSettings(), origin, window)
