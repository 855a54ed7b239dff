"""Commands on caches and devices: replay, conform, advise, calibrate-device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moe_beyond.cli.common import (
    RESAMPLES,
    AllowTrainingPrompts,
    AsJson,
    TracePath,
    app,
    check_device_output,
    read_trace,
    show,
)
from moe_beyond.cli.progress import tell
from moe_beyond.errors import InputError, naming
from moe_beyond.settings import DEFAULT_SEED

if TYPE_CHECKING:
    from moe_beyond.advisor.plans import CacheSize
    from moe_beyond.predictor.latency import Latency
    from moe_beyond.predictor.runtime import OnnxPredictor
    from moe_beyond.traces.schema import Trace

Split = Literal["shared", "even", "fitted"]
Prefill = Literal["batched", "token_by_token"]
Capacity = Annotated[int | None, typer.Option(help="Experts that the cache holds.")]
BudgetMib = Annotated[float | None, typer.Option(help="Size of the cache in MiB, instead of a capacity.")]
DeviceName = Annotated[str, typer.Option(help="One of the package's, or the path of a .yaml file.")]
PredictorPath = Annotated[Path | None, typer.Option(help="Folder that the export stage wrote.")]
Batch = Annotated[int, typer.Option(help="Prompts that run at once.")]
BlockTokens = Annotated[
    int, typer.Option(help="Tokens that a decode step verifies (speculative decoding); drafting takes no time.")
]
AcceptedShare = Annotated[float | None, typer.Option(help="Part of such a block's tokens that is kept.")]
Lookahead = Annotated[int, typer.Option(min=0, help="Layers ahead for which prefetches may be under way.")]
DenseMib = Annotated[
    float | None,
    typer.Option(min=0, help="MiB of all weights beside the experts; by default as traced, else an assumption."),
]
Overrun = Annotated[
    bool, typer.Option("--overrun/--no-overrun", help="Keep what an event has just used, even above the cache's size.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of the intervals and of fitted policies.")]


@app.command()
def replay(
    trace: TracePath,
    policy: Annotated[str, typer.Option(help="lru, layer_lru, belady, ...; a wrong name lists them all.")],
    *,
    capacity: Capacity = None,
    budget_mib: BudgetMib = None,
    device: Annotated[str | None, typer.Option(help="Take the time on this device too.")] = None,
    predictor: PredictorPath = None,
    train: Annotated[Path | None, typer.Option(help="Trace of other prompts, for policies that are fitted.")] = None,
    split: Annotated[Split | None, typer.Option(help="How layers share the cache.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Experts a predictor fetches for a layer at most.")] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Least probability of those.")] = 0.0,
    prefill: Annotated[Prefill, typer.Option(help="Whether a prompt's prefill is one step.")] = "batched",
    batch: Batch = 1,
    block_tokens: BlockTokens = 1,
    accepted_share: AcceptedShare = None,
    cold: Annotated[bool, typer.Option("--cold", help="Empty the cache between prompts.")] = False,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Judge accesses one by one, to compare with older papers only.")
    ] = False,
    allow_training_prompts: AllowTrainingPrompts = False,
    lookahead: Lookahead = 2,
    dense_mib: DenseMib = None,
    overrun: Overrun = True,
    seed: Seed = DEFAULT_SEED,
    as_json: AsJson = False,
) -> None:
    """Replay a trace through one cache: hits, bytes, and with a device the time."""
    from moe_beyond.advisor.one_replay import Setup, replay_one  # noqa: PLC0415
    from moe_beyond.devices.device import load_device  # noqa: PLC0415

    size = cache_size(capacity, budget_mib)
    where = None if device is None else load_device(device)
    routing = read_trace(trace)
    model, charge = _predictor(predictor, routing, allow_training_prompts)
    setup = Setup(
        policy=policy,
        size=size,
        split=split,
        width=width,
        threshold=threshold,
        prefill=prefill,
        batch=batch,
        block=block_tokens,
        accepted_share=accepted_share,
        keep_warm=not cold,
        sequential=sequential,
        device=where,
        token_step_ms=charge.token_step_ms,
        layer_step_ms=charge.layer_step_ms,
        lookahead=lookahead,
        dense_bytes=_bytes(dense_mib),
        overrun=overrun,
        samples=RESAMPLES,
        seed=seed,
    )
    training = _training(train, routing)
    show(replay_one(routing, setup, training, model), as_json)


@app.command()
def conform(
    trace: TracePath,
    policy: Annotated[str, typer.Option(help="What the engine runs; as for replay.")],
    *,
    engine_hits: Annotated[int | None, typer.Option(min=0, help="Hits that the engine counted, prefill too.")] = None,
    engine_rows: Annotated[
        Path | None, typer.Option(help="CSV of its hits by step, phase and layer, or by some of these.")
    ] = None,
    capacity: Capacity = None,
    budget_mib: BudgetMib = None,
    train: Annotated[Path | None, typer.Option(help="Trace of other prompts, for policies that are fitted.")] = None,
    split: Annotated[Split | None, typer.Option(help="How layers share the cache.")] = None,
    prefill: Annotated[Prefill, typer.Option(help="Whether a prompt's prefill is one step.")] = "batched",
    cold: Annotated[bool, typer.Option("--cold", help="Empty the cache between prompts.")] = False,
    sequential: Annotated[bool, typer.Option("--sequential", help="Judge accesses one by one.")] = False,
    overrun: Overrun = True,
    seed: Seed = DEFAULT_SEED,
    as_json: AsJson = False,
) -> None:
    """Compare an engine's hits with a replay of the same policy. Exit status 3: they part."""
    from moe_beyond.advisor import conform as comparison  # noqa: PLC0415
    from moe_beyond.advisor.one_replay import Setup  # noqa: PLC0415

    if (engine_hits is None) == (engine_rows is None):
        raise InputError("what did the engine count? give either --engine-hits or --engine-rows")
    routing = read_trace(trace)
    setup = Setup(
        policy=policy,
        size=cache_size(capacity, budget_mib),
        split=split,
        prefill=prefill,
        keep_warm=not cold,
        sequential=sequential,
        overrun=overrun,
        seed=seed,
    )
    training = _training(train, routing)
    engine = engine_hits if engine_rows is None else comparison.read_rows(engine_rows, routing.metadata)
    found = comparison.conform(routing, setup, training, 0 if engine is None else engine)
    show(found, as_json)
    if not found["equal"]:
        raise typer.Exit(3)


@app.command()
def advise(
    trace: TracePath,
    device: DeviceName,
    *,
    capacity: Capacity = None,
    budget_mib: BudgetMib = None,
    predictor: PredictorPath = None,
    dense_mib: DenseMib = None,
    target: Annotated[float, typer.Option(min=0, help="Tokens a second below which it is not worth it.")] = 5.0,
    lossy: Annotated[bool, typer.Option("--lossy", help="Allow policies that change the model's outputs.")] = False,
    batch: Batch = 1,
    block_tokens: BlockTokens = 1,
    accepted_share: AcceptedShare = None,
    overrun: Overrun = False,
    allow_training_prompts: AllowTrainingPrompts = False,
    lookahead: Lookahead = 2,
    max_tokens: Annotated[int, typer.Option(min=100, help="About how many tokens are replayed.")] = 12_000,
    seed: Seed = DEFAULT_SEED,
    as_json: AsJson = False,
) -> None:
    """Recommend the policy, split and prefetch that decode fastest on a device; show what more memory would buy."""
    from moe_beyond.advisor.choice import AdviceSettings  # noqa: PLC0415
    from moe_beyond.advisor.choice import advise as recommend  # noqa: PLC0415
    from moe_beyond.advisor.document import document, print_advice  # noqa: PLC0415
    from moe_beyond.devices.device import load_device  # noqa: PLC0415

    size, where = cache_size(capacity, budget_mib), load_device(device)
    routing = read_trace(trace)
    model, charge = _predictor(predictor, routing, allow_training_prompts)
    settings = AdviceSettings(
        device=where,
        size=size,
        token_step_ms=charge.token_step_ms,
        layer_step_ms=charge.layer_step_ms,
        lookahead=lookahead,
        batch=batch,
        block=block_tokens,
        accepted_share=accepted_share,
        dense_bytes=_bytes(dense_mib),
        overrun=overrun,
        lossy=lossy,
        max_tokens=max_tokens,
        samples=RESAMPLES,
        seed=seed,
    )
    with naming(trace):
        found = document(recommend(routing, settings, model, tell), target)
    if as_json:
        show(found, as_json)
    else:
        print_advice(found)


@app.command("calibrate-device")
def calibrate_device(
    recording: Annotated[Path, typer.Argument(help="CSV of decoded tokens with columns read_bytes and wall_ms.")],
    out: Annotated[Path, typer.Argument(help="Device file to write, ending in .yaml.")],
    *,
    resident_mib: Annotated[
        float | None, typer.Option(min=0.001, help="MiB of resident weights that a token reads, experts too.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Trace of the model, instead: it says how much that is.")] = None,
    dense_mib: DenseMib = None,
    as_json: AsJson = False,
) -> None:
    """Fit a device to a recording of the engine that will run on it."""
    from moe_beyond.devices.calibrate import calibrate  # noqa: PLC0415
    from moe_beyond.devices.device import dump_device  # noqa: PLC0415
    from moe_beyond.devices.workload import ASSUMED_DENSE, Workload, dense_size  # noqa: PLC0415
    from moe_beyond.files import replacing  # noqa: PLC0415

    check_device_output(out, recording, *filter(None, (trace,)))
    resident_bytes, source = _bytes(resident_mib), "given"
    if (resident_bytes is None) == (trace is None):
        raise InputError("what does a token read in fast memory? give either --trace or --resident-mib")
    if trace is not None:
        meta = read_trace(trace).metadata
        dense_bytes, source = dense_size(meta, _bytes(dense_mib), None)
        resident_bytes = Workload.of(meta, 0, dense_bytes=dense_bytes).resident_bytes(meta.top_k)
    fitted = calibrate(recording, resident_bytes or 0, out.stem)
    with replacing(out) as temporary:
        temporary.write_text(dump_device(fitted.device), encoding="utf-8")
    result = {
        "device": str(out),
        **fitted.device.model_dump(include={"link_gb_per_s", "memory_gb_per_s", "resident_mib"}),
        "dense_size_from": source,
        "tokens": fitted.tokens,
        "mean_error_on_second_half": fitted.device.fit_error,
        "median_error_on_second_half": fitted.median_error,
        "notes": [*fitted.notes, *([ASSUMED_DENSE] if source == "assumed" else [])],
    }
    show(result, as_json)


def _bytes(mib: float | None) -> int | None:
    from moe_beyond.simulator.engine.results import MIB  # noqa: PLC0415

    return None if mib is None else round(mib * MIB)


def cache_size(capacity: int | None, budget_mib: float | None) -> CacheSize:
    """The size that two options name, of which just one must be given."""
    from moe_beyond.advisor.plans import CacheSize  # noqa: PLC0415
    from moe_beyond.simulator.engine.results import MIB  # noqa: PLC0415

    if capacity is not None and budget_mib is None:
        return CacheSize(capacity)
    if budget_mib is not None and capacity is None:
        return CacheSize(round(budget_mib * MIB), in_bytes=True)
    raise InputError("how large is the cache? give either --capacity in experts or --budget-mib in MiB")


def _training(path: Path | None, trace: Trace) -> Trace | None:
    """The trace that policies are fitted on, of the same model as `trace`."""
    if path is None:
        return None
    training = read_trace(path)
    trace.metadata.require_same_model(training.metadata, str(path))
    return training


def _predictor(directory: Path | None, trace: Trace, allow_seen: bool) -> tuple[OnnxPredictor | None, Latency]:
    """A predictor that may be evaluated on a trace, and what is charged for it; nothing without one."""
    from moe_beyond.predictor.latency import Latency  # noqa: PLC0415
    from moe_beyond.predictor.runtime import OnnxPredictor  # noqa: PLC0415

    if directory is None:
        return None, Latency(0.0, 0.0, 0.0)
    model = OnnxPredictor(directory)
    if not allow_seen:
        model.refuse_training_prompts(trace)
    # with the hidden states of a trace that has some
    model = model.reading(trace)
    return model, model.charge
