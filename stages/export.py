"""Exports the predictor to ONNX, checks parity with PyTorch, times it, and scores it on every split."""

from dataclasses import asdict
from pathlib import Path

import polars as pl

from moe_beyond.data.splitting import GATE, SPLITS, TEST
from moe_beyond.evaluation.evaluate import evaluate
from moe_beyond.evaluation.hidden_scores import from_hidden, hidden_table, token_step, two_steps
from moe_beyond.files import write_json, write_tables
from moe_beyond.network.checkpoint import load_checkpoint
from moe_beyond.network.export import export_predictor
from moe_beyond.network.settings import ExportSettings
from moe_beyond.paper.network import load_variants
from moe_beyond.paper.scores import protocol_table
from moe_beyond.predictor.baselines import TokenUnigram
from moe_beyond.predictor.hidden_baselines import fit_from_hidden
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.settings import Seed, Settings
from moe_beyond.simulator.bounds.lru_misses import lru_missed_TLK
from moe_beyond.traces import store
from moe_beyond.traces.schema import Trace

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
    if (hidden := _beside_hidden_states(predictor, splits, settings, seed)) is not None:
        tables["hidden"] = hidden
    write_tables(root / REPORTS / "tables", tables)
    write_json(root / REPORTS / "metrics.json", exported.metrics | evaluation.metrics())
    write_json(
        root / REPORTS / "latency.json", {"measured": asdict(exported.measured), "charged": asdict(exported.charged)}
    )


def _beside_hidden_states(
    predictor: OnnxPredictor, splits: dict[str, Trace], settings: ExportSettings, seed: int
) -> pl.DataFrame | None:
    """The table `hidden` of the test splits; None where the traces have no hidden states."""
    baselines = fit_from_hidden(splits["train"], splits["validation"], seed)
    tests = {name: trace for name, trace in splits.items() if name.startswith(TEST) and trace.hidden is not None}
    if not (baselines and tests):
        return None
    candidates = [two_steps(predictor), token_step(TokenUnigram.fit(splits["train"])), *map(from_hidden, baselines)]
    tables = []
    for name, trace in tests.items():
        capacity = max(1, round(settings.missed_capacity * trace.metadata.num_model_experts))
        missed_TLK = lru_missed_TLK(trace, capacity)
        tables.append(
            hidden_table(candidates, name, trace, missed_TLK, resamples=settings.bootstrap_resamples, seed=seed)
        )
    return pl.concat(tables)
