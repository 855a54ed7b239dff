"""Logs this state's run, registers the predictor, and makes it the champion if it beats the one in use."""

from pathlib import Path

from moe_beyond.data.splitting import GATE, SPLITS, TEST
from moe_beyond.errors import InputError
from moe_beyond.params import Params
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.registry.bundle import Origin, write_bundle
from moe_beyond.registry.drift.report import measure
from moe_beyond.registry.drift.window import Window
from moe_beyond.registry.publishing import PREDICTOR, Gate, publish
from moe_beyond.traces import store
from moe_beyond.tracking.dvc import receipts
from moe_beyond.tracking.pipeline import log_pipeline
from moe_beyond.tracking.run_record import digests, git_tags

DATA = Path("data/splits")


def main(root: Path, params: Params) -> None:
    settings, simulate = params.publish, params.simulate.of_source(params.traces.source)
    # a source without a held-out domain leaves that split's folder empty
    present = [name for name in SPLITS if store.has_working(root / DATA / name)]
    gate_splits = {name: store.open_working(root / DATA / name) for name in present if name.startswith(GATE)}
    if not gate_splits:
        raise InputError(f"{DATA}: no prompts for the gate; raise split.gate_fraction")
    shown = [f"{DATA}/{name}" for name in present if name == "train" or name.startswith(TEST)]
    data = dict(digests(root, [f"{DATA}/{name}" for name in gate_splits]))
    gate = Gate(gate_splits, settings, simulate, params.seed, tuple(data.values()))
    device = simulate.headline_device or next(iter(simulate.devices), None)

    def bundle(folder: Path) -> None:
        training, near = store.open_working(root / DATA / "train"), next(iter(gate_splits.values()))
        measured = measure(near, OnnxPredictor(root / PREDICTOR), settings.capacity, simulate, prefetch=True)
        known = dict(digests(root, ["data/traces", *(f"{DATA}/{name}" for name in present), str(PREDICTOR)]))
        origin = Origin(params.seed, git_tags(root), known, receipts(root))
        write_bundle(folder, root, training.metadata, settings, origin, (Window.of(training), measured))

    publish(root, gate, lambda: log_pipeline(root, params, device, shown), bundle, shown[-1])
