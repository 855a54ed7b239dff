"""Exports the predictor to ONNX, holds it to torch's answers, times it, and scores it on every split."""

from pathlib import Path

from moe_beyond.data.splitting import SPLITS
from moe_beyond.evaluation import evaluate
from moe_beyond.files import replacing
from moe_beyond.predictor.checkpoint import load_checkpoint
from moe_beyond.predictor.published import load_variants
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.predictor.shipping import export_predictor
from moe_beyond.traces import store
from moe_beyond.tracking import stage_run

CHECKPOINT = Path("models/checkpoint")
PUBLISHED = Path("models/published")
PREDICTOR = Path("models/predictor")
DATA = Path("data/splits")


def main() -> None:
    with stage_run("export") as run:
        settings = run.params.export
        splits = {name: store.open_working(DATA / name) for name in SPLITS if store.has_working(DATA / name)}
        shipped = export_predictor(load_checkpoint(CHECKPOINT), PREDICTOR, splits["validation"], settings)
        evaluation = evaluate(
            OnnxPredictor(PREDICTOR),
            splits,
            settings.bootstrap_resamples,
            run.params.seed,
            others=load_variants(PUBLISHED),
        )
        for name, table in {**evaluation.tables(), "quantisation": shipped.quantisation}.items():
            with replacing(run.reports / f"{name}.csv") as temporary:
                table.write_csv(temporary)
        run.write_metrics(shipped.metrics | evaluation.metrics())


if __name__ == "__main__":
    main()
