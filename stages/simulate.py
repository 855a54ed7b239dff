"""Replays expert caches on the test splits: prefetch and eviction by the ONNX predictor beside baselines and bounds."""

from pathlib import Path

import polars as pl

from moe_beyond.capture.settings import TracesSettings
from moe_beyond.data.splitting import SPLITS, TEST
from moe_beyond.files import write_json, write_tables
from moe_beyond.paper.caches import rows_by_cache
from moe_beyond.predictor.baselines import TokenUnigram
from moe_beyond.predictor.hidden_baselines import fit_from_hidden
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.settings import Seed, Settings
from moe_beyond.simulator.study.headline import headline
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.simulator.study.study import Charged, replay_splits
from moe_beyond.simulator.study.tables import all_tables
from moe_beyond.traces import store

DATA = Path("data/splits")
REPORTS = Path("reports/simulate")


class Params(Settings):
    seed: Seed
    traces: TracesSettings
    simulate: SimulateSettings = SimulateSettings()


def main(root: Path, params: Params) -> None:
    settings, seed = params.simulate.of_source(params.traces.source), params.seed
    settings = settings.model_copy(update={"published_policies": settings.published_policies.of_seed(seed)})
    training, validation = (store.open_working(root / DATA / name) for name in ("train", "validation"))
    # a source without a held-out domain leaves that split's folder empty
    present = [name for name in SPLITS if name.startswith(TEST) and store.has_working(root / DATA / name)]
    splits = {name: store.open_working(root / DATA / name) for name in present}
    plain = OnnxPredictor(root / "models/predictor")
    ours = plain.reading(training)
    # the table of counts prefetches by the same rule, so that learning is compared with counting, not with nothing
    predictors = [
        Charged.of(ours),
        Charged(TokenUnigram.fit(training), ours.charge.table_ms),
    ]
    if ours.uses_hidden:
        without = OnnxPredictor(root / "models/predictor", name="predictor without hidden states")
        predictors.append(Charged.of(without, variant=True))
    rivals = [Charged.reader(one, training) for one in fit_from_hidden(training, validation, seed)]
    replays = replay_splits(splits, training, validation, predictors, settings, rivals=rivals)
    paper = [
        rows_by_cache(name, trace, training, plain, resamples=settings.bootstrap_samples, seed=seed)
        for name, trace in splits.items()
    ]
    write_tables(root / REPORTS / "tables", all_tables(replays, seed) | {"paper_replay": pl.concat(paper)})
    write_json(root / REPORTS / "metrics.json", headline(replays, seed))
