"""A project's outs, as far as a bundle and the pipeline's run are made of them, around an exported predictor."""

import shutil

import polars as pl

from moe_beyond.files import write_json, write_tables
from moe_beyond.registry.bundle import Origin, write_bundle
from moe_beyond.registry.drift.window import Measures, Window
from moe_beyond.registry.settings import PublishSettings
from tests.reporting.example import on_device

RECALL = {"predictor": 0.8, "token_unigram": 0.7, "popularity": 0.2, "previous_token": 0.3}
HEADLINE = {"ms_per_token": {"value": 8.0, "low": 7.5, "high": 8.5}, "token_step_ms": {"value": 0.1}}


def small_project(root, predictor):
    """Write models/predictor and the reports that a bundle and the pipeline's run read."""
    shutil.copytree(predictor, root / "models/predictor")
    for stage in ("assess", "tune", "export", "simulate", "figures"):
        (root / "reports" / stage).mkdir(parents=True)
    documents = {
        "assess/card": {"verdict": "go", "reasons": ["it pays"]},
        "export/metrics": {"recall_at_k": {"test_in_domain": RECALL}, "latency_ms": 0.2},
        "simulate/metrics": HEADLINE,
        "assess/run": {"stage": "assess", "key": "a1"},
        "export/run": {"stage": "export", "key": "e1"},
    }
    for name, document in documents.items():
        write_json(root / f"reports/{name}.json", document)
    write_tables(root / "reports/export/tables", dict.fromkeys(("calibration", "quality"), pl.DataFrame({"a": [1]})))
    write_tables(root / "reports/simulate/tables", {"on_device": on_device()})
    (root / "reports/tune/best.yaml").write_text("width: 16\ndepth: 1\nheads: 2\n")
    (root / "reports/figures/a.png").write_bytes(b"png")
    (root / "reports/index.html").write_text("<p>page</p>")


def small_bundle(folder, root, trace, settings=None):
    """A bundle of `small_project`."""
    origin = Origin(7, {"git.commit": "c" * 40, "git.dirty": "true"}, {"data/traces": "abc.dir"}, {"train": "r"})
    window = (Window.of(trace), Measures("predictor", 0.8, 0.6, 0.3, 5))
    return write_bundle(folder, root, trace.metadata, settings or PublishSettings(), origin, window)
