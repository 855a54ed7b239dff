"""Replays expert caches on the test splits: the ONNX predictor's prefetch beside baselines and bounds."""

from pathlib import Path

import polars as pl

from moe_beyond.data.splitting import SPLITS
from moe_beyond.files import replacing
from moe_beyond.predictor.base import Predictor
from moe_beyond.predictor.baselines import TokenUnigram
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.published_cache import rows_by_cache
from moe_beyond.simulator.experiment import replay_splits
from moe_beyond.simulator.tables import all_tables, headline
from moe_beyond.traces import store
from moe_beyond.tracking import stage_run

DATA = Path("data/splits")
PREDICTOR = Path("models/predictor")


def main() -> None:
    with stage_run("simulate") as run:
        settings = run.params.simulate
        if run.params.traces.source != "reference":
            settings = settings.model_copy(update={"timed_expert_mib": None})
        training = store.open_working(run.root / DATA / "train")
        # a source without a held-out domain leaves that split's folder empty
        present = [name for name in SPLITS if name.startswith("test") and store.has_working(run.root / DATA / name)]
        splits = {name: store.open_working(run.root / DATA / name) for name in present}
        # the table of counts prefetches by the same rule, so that learning is compared with counting, not with nothing
        predictors: list[Predictor] = [OnnxPredictor(run.root / PREDICTOR), TokenUnigram.fit(training)]
        replays = replay_splits(splits, training, predictors, settings)
        seed, resamples = run.params.seed, settings.bootstrap_samples
        through_ours = [
            rows_by_cache(name, trace, training, predictors, resamples=resamples, seed=seed)
            for name, trace in splits.items()
        ]
        tables = all_tables(replays, settings, seed) | {"published_cache.csv": pl.concat(through_ours)}
        for name, table in tables.items():
            with replacing(run.reports / name) as temporary:
                table.write_csv(temporary)
        run.write_metrics(headline(replays, settings))


if __name__ == "__main__":
    main()
