"""The verify stage: which policies are decoded live, on which prompts and link, and the tables of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from moe_beyond.data.splitting import SPLITS, TEST
from moe_beyond.devices.device import load_device
from moe_beyond.devices.workload import Workload
from moe_beyond.errors import InputError
from moe_beyond.live.check import check, metrics
from moe_beyond.live.lossy import all_cases, lossy_case
from moe_beyond.live.quality import measure
from moe_beyond.live.session import Case
from moe_beyond.live.texts import held_out_texts, with_decoded_tokens
from moe_beyond.predictor.baselines import Popularity
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.simulator.policies.anticipate import Anticipate
from moe_beyond.simulator.policies.catalogue import build
from moe_beyond.simulator.policies.online_prediction import predicted
from moe_beyond.simulator.policies.predictions import Predictions, prefetch_width
from moe_beyond.simulator.policies.prefetch import Prefetch
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.simulator.study.case import capacity_experts
from moe_beyond.traces import store as traces

if TYPE_CHECKING:
    from moe_beyond.capture.models import LoadedModel
    from moe_beyond.live.settings import VerifySettings
    from moe_beyond.live.store import ExpertStore
    from moe_beyond.simulator.engine.online import Online
    from moe_beyond.simulator.engine.policy import Policy
    from moe_beyond.simulator.policies.settings import PolicySettings
    from moe_beyond.simulator.study.settings import SimulateSettings
    from moe_beyond.traces.schema import Trace

_SPLITS = Path("data/splits")


def verify(
    root: Path,
    loaded: LoadedModel,
    experts: ExpertStore,
    settings: SimulateSettings,
    live: VerifySettings,
    *,
    seed: int,
) -> tuple[dict[str, pl.DataFrame], dict[str, dict[str, float]]]:
    """Decode prompts of the last test split: LRU, the best policy without the predictor, ours, and lossy ones.

    Args:
        root: The project's root, with splits, predictor and the tables of the simulate stage.
        loaded: The model that was traced, its experts in memory.
        experts: Their store.
        settings: Rules, headline device and capacity of the replay.
        live: How much is decoded.
        seed: Of fits and intervals.

    Returns:
        The tables `measured` (see `check`), `quality` (see `quality.measure`) and `link`,
        and the metrics.

    Raises:
        InputError: As `check`, `texts`, `quality.measure`, and the fits of policies.
    """
    published = settings.published_policies.of_seed(seed)
    training = traces.open_working(root / _SPLITS / "train")
    split = [name for name in SPLITS if name.startswith(TEST) and traces.has_working(root / _SPLITS / name)][-1]
    test = traces.open_working(root / _SPLITS / split)
    meta = test.metadata
    device = load_device(settings.headline_device or settings.devices[0])
    capacity = capacity_experts(meta, settings.headline_capacity)
    workload = Workload.of(meta, settings.lookahead_layers, expert_mib=settings.timed_expert_mib)
    # an expert takes as long as it does on the device
    gb_per_s = experts.stride / float(device.transfer_ms(float(workload.expert_bytes_L.max()))) / 1e6

    rows = replayed(
        pl.read_parquet(root / "reports/simulate/tables/on_device.parquet", glob=False), split, device.name, capacity
    )
    trace = with_decoded_tokens(test).beginning(live.prompts, live.tokens)
    predictor = OnnxPredictor(root / "models/predictor").reading(trace)
    charge, popularity_LE = predictor.charge, Popularity.fit(training).popularity_LE
    predictions = Predictions(
        predictor, trace, events_of(trace), charge.token_step_ms, charge.layer_step_ms, popularity_LE
    )
    checks, best = [], best_that_runs(rows, training, published)
    checks += [] if best is None else [Case(best)]
    chosen = rows.filter("ours")["policy"].to_list()
    width = prefetch_width(meta, 1, settings.prefetch_width)
    checks += [Case(*ours(predictions, predictor, name, width, settings.prefetch_threshold)) for name in chosen]
    checks += [lossy_case(name, loaded.model, experts, training, settings=published, seed=seed) for name in live.lossy]
    cases = all_cases(loaded.model, experts, training, settings=published, seed=seed)
    columns = (TextColumn("decoding live"), BarColumn(), MofNCompleteColumn(), TextColumn("policies"))
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=1 + len(checks) + len(cases))
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
            done=lambda: progress.advance(bar),
        )
        quality = measure(
            loaded.model,
            loaded.tokenizer,
            experts,
            cases,
            held_out_texts(test, live.quality_prompts, live.quality_prefill, live.quality_tokens),
            num_prefill=live.quality_prefill,
            capacity_experts=capacity,
            seed=seed,
            gb_per_s=gb_per_s,
            done=lambda: progress.advance(bar),
        )
    link = pl.DataFrame({"device": [device.name], "gb_per_s": [gb_per_s], "split": [split], "capacity": [capacity]})
    return {"measured": measured, "quality": quality, "link": link}, metrics(measured, chosen[0] if chosen else None)


def replayed(table: pl.DataFrame, split: str, device: str, capacity_experts: int) -> pl.DataFrame:
    """Rows of the replay's table `on_device` for one place, the fastest first."""
    place = (pl.col("split") == split) & (pl.col("device") == device) & (pl.col("capacity_experts") == capacity_experts)
    return table.filter(place).sort("ms_per_token", "policy")


def best_that_runs(rows: pl.DataFrame, training: Trace, settings: PolicySettings) -> Policy | None:
    """The fastest lossless policy of the replay without a predictor that can run beside a model, or None.

    Args:
        rows: As `replayed` gives them.
        training: The training split.
        settings: Of published policies.
    """
    names = rows.filter(~pl.col("lossy") & ~pl.col("bound") & pl.col("predictor").is_null())["policy"]
    for name in names:
        policy = build(name, training, settings)
        try:
            policy.online(training.metadata)
        except InputError:
            continue
        return policy
    return None


def ours(
    predictions: Predictions, predictor: OnnxPredictor, name: str, width: int, threshold: float
) -> tuple[Policy, Online]:
    """The way of using the predictor that bears a name in the replay's tables, replayed and beside a model.

    Raises:
        AssertionError: No way of using it bears the name.
    """
    for policy in predictions.policies(width, threshold):
        if policy.name == name:
            evicts = policy if isinstance(policy, Anticipate) else getattr(policy, "eviction", None)
            _, online = predicted(
                predictor,
                predictions.trace.metadata,
                predictions.popularity_LE,
                None if isinstance(evicts, Anticipate) else evicts,
                width if isinstance(policy, Prefetch) else 0,
                threshold,
                layers=isinstance(policy, Prefetch) and policy.layers_HTLE is not None,
                next_token=isinstance(policy, Prefetch) and policy.later_TLE is not None,
            )
            return policy, online
    raise AssertionError(f"{name}: no way of using the predictor")
