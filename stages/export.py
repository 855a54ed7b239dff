"""Exports the predictor to ONNX, checks parity with PyTorch, times it, and scores it on every split."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from moe_beyond.data.splitting import GATE, SPLITS
from moe_beyond.evaluation.evaluate import evaluate
from moe_beyond.evaluation.hidden_scores import evaluate_hidden
from moe_beyond.files import write_json, write_tables
from moe_beyond.network.checkpoint import load_checkpoint
from moe_beyond.network.export import export_predictor
from moe_beyond.network.settings import ExportSettings
from moe_beyond.paper.network import load_variants
from moe_beyond.paper.scores import protocol_table
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.settings import Seed, Settings
from moe_beyond.simulator.bounds.lru_misses import lru_missed_TLK
from moe_beyond.traces import store

DATA = Path("data/splits")
REPORTS = Path("reports/export")


class Params(Settings):
    seed: Seed
    export: ExportSettings = ExportSettings()


def main(root: Path, params: Params) -> None:
    settings, seed, directory = params.export, params.seed, root / "models/predictor"
    scored = {name: root / DATA / name for name in SPLITS if not name.startswith(GATE)}
    splits = {name: store.open_working(path) for name, path in scored.items() if store.has_working(path)}
    fitted_on = {name: splits[name] for name in ("train", "validation")}
    exported = export_predictor(load_checkpoint(root / "models/checkpoint"), directory, fitted_on, settings)
    predictor, resamples = OnnxPredictor(directory), settings.bootstrap_resamples
    evaluation = evaluate(predictor, splits, resamples, seed, others=load_variants(root / "models/published"))
    tables = {
        "quality": evaluation.quality,
        "calibration": evaluation.calibration,
        "published_protocol": protocol_table(predictor, splits, resamples, seed),
    }
    reading, missed = predictor.reading(splits["train"]), partial(lru_missed_TLK, share=settings.missed_capacity)
    tables["hidden"] = evaluate_hidden(reading, predictor, splits, missed, resamples=resamples, seed=seed)
    write_tables(root / REPORTS / "tables", tables)
    write_json(root / REPORTS / "metrics.json", exported.metrics | evaluation.metrics())
    write_json(
        root / REPORTS / "latency.json", {"measured": asdict(exported.measured), "charged": asdict(exported.charged)}
    )
