"""A project's outs, as far as a bundle and the pipeline's run are made of them, around an exported predictor."""

import json
import shutil

import polars as pl

from moe_beyond.registry.bundle import Origin, write_bundle
from moe_beyond.registry.drift.window import Measures, Window
from moe_beyond.registry.settings import PublishSettings

RECALL = {"predictor": 0.8, "token_unigram": 0.7, "popularity": 0.2, "previous_token": 0.3}
HEADLINE = {
    "ms_per_token": {"value": 8.0, "low": 7.5, "high": 8.5},
    "hit_rate": {"value": 0.6, "low": 0.5, "high": 0.7},
    "token_step_ms": {"value": 0.1},
}


def on_device():
    """Four policies on one device at two capacities, on two splits."""
    policies = [
        ("lru", 9.0, False),
        ("predictor_prefetch_lru", 8.0, False),
        ("mote", 2.0, True),
        ("belady", 7.0, False),
    ]
    rows = [
        {
            "split": split, "device": "laptop_nvme", "policy": name, "title": name.upper(), "bound": name == "belady",
            "lossy": lossy, "capacity_experts": slots, "capacity_fraction": slots / 50, "ms_per_token": ms * 5 / slots,
            "tokens_per_second": 1000 * slots / ms / 5, "hit_rate": 0.5 * slots / 5, "mib_per_token": 3.0,
            "ours": name == "predictor_prefetch_lru", "best_without_predictor": name == "lru", "gap_closed": 0.5,
            "token_step_ms": 0.1, "layer_step_ms": 0.05,
        }
        for split in ("test_in_domain", "test_out_of_domain")
        for slots in (5, 10)
        for name, ms, lossy in policies
    ]  # fmt: skip
    return pl.DataFrame(rows)


def small_project(root, predictor):
    """Write models/predictor and the reports that a bundle and the pipeline's run read."""
    shutil.copytree(predictor, root / "models/predictor")
    for stage in ("assess", "tune", "export/tables", "simulate/tables", "figures"):
        (root / "reports" / stage).mkdir(parents=True)
    documents = {
        "assess/card": {"verdict": "go", "reasons": ["it pays"]},
        "export/metrics": {"recall_at_k": {"test_in_domain": RECALL}, "latency_ms": 0.2},
        "simulate/metrics": HEADLINE,
        "assess/run": {"stage": "assess", "key": "a1"},
        "export/run": {"stage": "export", "key": "e1"},
    }
    for name, document in documents.items():
        (root / "reports" / f"{name}.json").write_text(json.dumps(document))
    for name in ("calibration", "quality"):
        pl.DataFrame({"a": [1]}).write_parquet(root / f"reports/export/tables/{name}.parquet")
    on_device().write_parquet(root / "reports/simulate/tables/on_device.parquet")
    (root / "reports/tune/best.yaml").write_text("width: 16\ndepth: 1\nheads: 2\n")
    (root / "reports/figures/a.png").write_bytes(b"png")
    (root / "reports/index.html").write_text("<p>page</p>")


def small_bundle(folder, root, trace, settings=None):
    """A bundle of `small_project`."""
    origin = Origin(7, {"git.commit": "c" * 40, "git.dirty": "true"}, {"data/traces": "abc.dir"}, {"train": "r"})
    window = (Window.of(trace), Measures("predictor", 0.8, 0.6, 0.3, 5))
    return write_bundle(folder, root, trace.metadata, settings or PublishSettings(), origin, window)
