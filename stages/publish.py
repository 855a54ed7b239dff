"""Opens the pipeline's run, registers the predictor, and moves the champion if this one won by the gate."""

import tempfile
from pathlib import Path

from moe_beyond.data.splitting import SPLITS
from moe_beyond.files import folder_digest
from moe_beyond.params import load_params
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.registry.bundle import Origin, registered_name, write_bundle
from moe_beyond.registry.drift.report import measure
from moe_beyond.registry.drift.window import Window
from moe_beyond.registry.publishing import Gate, publish
from moe_beyond.registry.registry import Registry
from moe_beyond.traces import store
from moe_beyond.tracking import pipeline_run, stage_run
from moe_beyond.tracking.asking import must_answer
from moe_beyond.tracking.receipts import receipts
from moe_beyond.tracking.stage import git_tags

DATA = Path("data/splits")
PREDICTOR = Path("models/predictor")
SHOWN = [
    "reports/index.html",
    "reports/figures",
    "models/predictor",
    "reports/publish/verdict.json",
    "reports/publish/table.csv",
]


def main() -> None:
    # the registry decides who is champion: without it there is nothing to publish to
    with stage_run("publish", load_params) as run, must_answer(run.client.uri):
        params, settings, simulate = run.params, run.params.publish, run.params.replay
        # a source without a held-out domain leaves that split's folder empty
        present = [name for name in SPLITS if name.startswith("test") and any((run.root / DATA / name).iterdir())]
        splits = {name: store.open_working(run.root / DATA / name) for name in present}
        training = store.open_working(run.root / DATA / "train")
        near = splits.get("test_in_domain", splits[present[0]])
        measured = measure(near, OnnxPredictor(PREDICTOR), settings.capacity, simulate, prefetch=True)
        digests = {
            path: folder_digest(run.root / path) for path in run.declared.deps if path.startswith(("data", "models"))
        }
        origin = Origin(digests, git_tags(run.root), receipts(run.root), params.seed)
        with tempfile.TemporaryDirectory() as folder, pipeline_run(run, SHOWN) as pipeline_id:
            bundle = Path(folder) / "bundle"
            write_bundle(bundle, run.root, training.metadata, settings, origin, (Window.of(training), measured))
            registry = Registry(run.client, registered_name(settings, training.metadata.model_id))
            move_champion = publish(run, registry, bundle, Gate(splits, settings, simulate, params.seed), pipeline_id)
        move_champion()


if __name__ == "__main__":
    main()
