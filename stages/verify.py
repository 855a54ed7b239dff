"""Decodes test prompts live, with experts on disk, under policies that were replayed, and compares the two."""

from pathlib import Path
from typing import Any

import polars as pl

from moe_beyond.capture.models import ModelSource, load
from moe_beyond.capture.settings import TracesSettings
from moe_beyond.capture.sources import model_of
from moe_beyond.data.splitting import SPLITS, TEST
from moe_beyond.devices.device import load_device
from moe_beyond.devices.workload import Workload
from moe_beyond.files import scratch_folder, write_json, write_tables
from moe_beyond.live.lossy import all_cases, lossy_case
from moe_beyond.live.packing import pack_model
from moe_beyond.live.quality import measure
from moe_beyond.live.settings import VerifySettings
from moe_beyond.live.store import ExpertStore
from moe_beyond.live.verify import Check, best_that_runs, check, held_out_texts, metrics, on_device, ours, replayed
from moe_beyond.predictor.baselines import Popularity
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.settings import Seed, Settings
from moe_beyond.simulator.policies.predictions import Predictions, prefetch_width
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.simulator.study.case import capacity_experts
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.threads import torch_threads
from moe_beyond.traces import store as traces

DATA = Path("data/splits")
REPORTS = Path("reports/verify")
NO_WEIGHTS = "published traces come without the model's weights, so nothing can be decoded"


class Params(Settings):
    seed: Seed
    traces: TracesSettings
    simulate: SimulateSettings = SimulateSettings()
    verify: VerifySettings = VerifySettings()


def main(root: Path, params: Params) -> None:
    if params.traces.source == "import":
        skipped = pl.DataFrame({"reason": [NO_WEIGHTS]})
        write_tables(root / REPORTS / "tables", {"not_verified": skipped})
        write_json(root / REPORTS / "metrics.json", {})
        return
    source = model_of(params.traces.transformers)
    if params.traces.source == "reference":
        source = ModelSource("models/reference")
    loaded = load(source)
    with (
        torch_threads(params.verify.threads),
        scratch_folder(root, "verify", loaded.revision) as scratch,
    ):
        pack_model(loaded.model, scratch / "experts", model_id=source.location, revision=loaded.revision)
        with ExpertStore.open(scratch / "experts") as experts:
            tables, found = verify(root, params, loaded, experts)
    write_tables(root / REPORTS / "tables", tables)
    write_json(root / REPORTS / "metrics.json", found)


def verify(root: Path, params: Params, loaded: Any, experts: ExpertStore) -> tuple[dict[str, pl.DataFrame], Any]:
    settings, live = params.simulate.of_source(params.traces.source), params.verify
    published = settings.published_policies.of_seed(params.seed)
    training = traces.open_working(root / DATA / "train")
    split = [name for name in SPLITS if name.startswith(TEST) and traces.has_working(root / DATA / name)][-1]
    test = traces.open_working(root / DATA / split)
    meta = test.metadata
    device = load_device(settings.headline_device or settings.devices[0])
    capacity = capacity_experts(meta, settings.headline_capacity)
    workload = Workload.of(meta, settings.lookahead_layers, expert_mib=settings.timed_expert_mib)
    # an expert takes as long as it does on the device
    gb_per_s = experts.stride / float(device.transfer_ms(float(workload.expert_bytes_L.max()))) / 1e6

    rows = replayed(pl.read_parquet(root / "reports/simulate/tables/on_device.parquet"), split, device.name, capacity)
    trace = test.beginning(live.prompts, live.tokens)
    predictor = OnnxPredictor(root / "models/predictor")
    charge, popularity_LE = predictor.charge, Popularity.fit(training).popularity_LE
    predictions = Predictions(
        predictor, trace, events_of(trace), charge.token_step_ms, charge.layer_step_ms, popularity_LE
    )
    checks, best = [], best_that_runs(rows, training, published)
    checks += [] if best is None else [Check(best)]
    chosen = rows.filter("ours")["policy"].to_list()
    width = prefetch_width(meta, 1, settings.prefetch_width)
    checks += [Check(*ours(predictions, predictor, name, width, settings.prefetch_threshold)) for name in chosen]
    for name in live.lossy:
        case = lossy_case(name, loaded.model, experts, training, settings=published, seed=params.seed)
        checks.append(Check(case.policy, case.online, case.levels_V))
    measured = check(
        loaded.model,
        loaded.tokenizer,
        experts,
        trace,
        checks,
        capacity_experts=capacity,
        lookahead=settings.lookahead_layers,
        gb_per_s=gb_per_s,
        lanes=live.lanes,
    )
    quality = measure(
        loaded.model,
        loaded.tokenizer,
        experts,
        all_cases(loaded.model, experts, training, settings=published, seed=params.seed),
        held_out_texts(test, live.quality_prompts, live.quality_prefill, live.quality_tokens),
        num_prefill=live.quality_prefill,
        capacity_experts=capacity,
        seed=params.seed,
    )
    quality = on_device(quality, meta, device, workload, experts.stride)
    link = pl.DataFrame({"device": [device.name], "gb_per_s": [gb_per_s], "split": [split], "capacity": [capacity]})
    return {"measured": measured, "quality": quality, "link": link}, metrics(measured, chosen[0] if chosen else None)
