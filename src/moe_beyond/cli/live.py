"""Commands on what runs here: run, measure-device."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_beyond.cli.caches import BudgetMib, Capacity, Lookahead, PredictorPath, cache_size
from moe_beyond.cli.common import AsJson, app, check_device_output, read_trace, show
from moe_beyond.errors import InputError
from moe_beyond.files import begins_with, check_output
from moe_beyond.settings import DEFAULT_SEED

if TYPE_CHECKING:
    from collections.abc import Callable

    from moe_beyond.advisor.plans import CacheSize
    from moe_beyond.live.store import ExpertStore
    from moe_beyond.simulator.engine.budget import Budget
    from moe_beyond.simulator.engine.online import Online
    from moe_beyond.simulator.engine.policy import Policy
    from moe_beyond.traces.schema import TraceMetadata

_INTERRUPTED = 130


@app.command()
def run(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a Mixture-of-Experts model.")],
    prompts: Annotated[Path, typer.Option(help="Prompts to decode after, as the extract stage reads them.")],
    policy: Annotated[str, typer.Option(help="As for replay.")] = "lru",
    *,
    capacity: Capacity = None,
    budget_mib: BudgetMib = None,
    predictor: PredictorPath = None,
    train: Annotated[Path | None, typer.Option(help="Trace of other prompts, for policies that are fitted.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Experts a predictor fetches for a layer at most.")] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Least probability of those.")] = 0.0,
    lookahead: Lookahead = 2,
    link_gb_per_s: Annotated[
        float | None, typer.Option(help="Slow loading down to so many 10^9 bytes a second.")
    ] = None,
    lanes: Annotated[int, typer.Option(min=1, max=64, help="Parts of an expert that are read at once.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens decoded after each prompt.")] = 64,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the most probable token, not a sampled one.")] = False,
    experts: Annotated[
        Path | None, typer.Option(help="Folder for the packed experts; by default in the user's cache.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, or cuda with the experts in the host's memory, which must hold them.")
    ] = "cpu",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="That compute; by default torch's choice.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")] = False,
    record: Annotated[Path | None, typer.Option(help="CSV to write, a row a token.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling and of fitted policies.")] = DEFAULT_SEED,
    as_json: AsJson = False,
) -> None:
    """Decode with experts on disk and a bounded cache before them: text, tokens a second, hits, bytes, waiting."""
    size = cache_size(capacity, budget_mib)
    _require(link_gb_per_s, dtype, device)
    _check_recording(record, prompts)

    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415

    from moe_beyond.advisor.plans import Fetch, parse_plan  # noqa: PLC0415
    from moe_beyond.capture.models import ModelSource  # noqa: PLC0415
    from moe_beyond.capture.prompts import encode, read_prompts  # noqa: PLC0415
    from moe_beyond.capture.settings import ExtractSettings  # noqa: PLC0415
    from moe_beyond.live.decoding import Decoded, decode, peak_memory_mib  # noqa: PLC0415
    from moe_beyond.live.dense_model import load_without_experts  # noqa: PLC0415
    from moe_beyond.live.recording import summary, write_recording  # noqa: PLC0415
    from moe_beyond.live.session import metadata_of, offloaded  # noqa: PLC0415
    from moe_beyond.threads import torch_threads  # noqa: PLC0415

    disable_progress_bar()  # a bar for each layer that is packed would break up the lines here
    # names and files first: they are quick to check, a model is slow to load
    parse_plan(policy, Fetch(width or 1, threshold), None)
    texts = read_prompts(prompts)
    source = ModelSource(model, trust_remote_code=trust_remote_code, device_map=device, dtype=dtype)
    loaded = load_without_experts(source)
    with _packed(source, loaded.revision, experts) as store, torch_threads(threads):
        meta = metadata_of(loaded.model, store)
        decides = _policy(policy, meta, size, predictor, train, width, threshold, seed)
        encoded = encode(texts, loaded.tokenizer, held_out=False, chat_template=True)
        settings = ExtractSettings(decode_tokens=max_new_tokens, decoding="greedy" if greedy else "sampled")
        done: list[dict[str, str]] = []

        def finished(one: Decoded) -> None:
            text = str(loaded.tokenizer.decode(one.token_ids_T[one.num_prefill :], skip_special_tokens=True))
            done.append({"prompt": one.prompt_id, "text": text})
            print(f"{len(done)} of {len(encoded)} prompts: {one.prompt_id}", file=sys.stderr)  # noqa: T201
            if not as_json:
                print(text)  # noqa: T201 - what the model says

        chosen, online, budget = decides
        complete = True
        with offloaded(
            loaded.model,
            store,
            chosen,
            budget,
            len(encoded),
            online=online,
            lookahead=lookahead,
            lanes=lanes,
            gb_per_s=link_gb_per_s,
        ) as running:
            try:
                decode(loaded.model, loaded.tokenizer, encoded, running, settings, seed=seed, progress=finished)
            except KeyboardInterrupt:
                complete = False
        if not complete and not any(time.decodes for time in running.times):
            print("interrupted before a token was decoded", file=sys.stderr)  # noqa: T201
            raise typer.Exit(_INTERRUPTED)
        about = f"{meta.model_id}, {chosen.name}, {budget.capacity_experts} experts"
        if record is not None:
            write_recording(record, running.times, about)
    result: dict[str, Any] = {
        "model": meta.model_id,
        "policy": chosen.name,
        "capacity_experts": budget.capacity_experts,
        "slots_mib": running.slots_mib,
        "link_gb_per_s": link_gb_per_s,
        "prompts_decoded": len(done),
        "prompts": len(encoded),
        **summary(running.times, running.cache.result()),
        "peak_memory_mib": peak_memory_mib(),
    }
    show(result | {"texts": done} if as_json else result, as_json)
    if not complete:
        print(f"interrupted after {len(done)} of {len(encoded)} prompts", file=sys.stderr)  # noqa: T201
        raise typer.Exit(_INTERRUPTED)


def _require(link_gb_per_s: float | None, dtype: str, device: str) -> None:
    """Raise InputError for options that typer cannot check."""
    if link_gb_per_s is not None and not 0 < link_gb_per_s < float("inf"):
        raise InputError(f"--link-gb-per-s: {link_gb_per_s}; give a number above 0")
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise InputError(f"--dtype: {dtype!r}; give auto, float32, bfloat16 or float16")
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"--device: {device!r}; give cpu, cuda or cuda:1")
    if device != "cpu":
        import torch  # noqa: PLC0415

        if not torch.cuda.is_available():
            raise InputError(f"--device: {device}; torch sees no GPU here; give cpu")


def _packed(source: Any, revision: str, folder: Path | None) -> ExpertStore:
    """The model's expert store, packed first where there is none."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    from moe_beyond.live.packing import pack  # noqa: PLC0415
    from moe_beyond.live.store import ExpertStore  # noqa: PLC0415

    if folder is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "moe-beyond" / "experts" / f"{revision}-{source.dtype}"
    console = Console(stderr=True)
    # where nobody watches, it would leave an empty line
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"packing experts into {folder}")
        advance: Callable[[int, int], None] = lambda written, total: progress.update(  # noqa: E731
            bar, completed=written, total=total
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        pack(source, folder, progress=advance)
    return ExpertStore.open(folder, revision=revision)


def _check_recording(record: Path | None, prompts: Path) -> None:
    if record is not None:
        check_output(record, inputs=[prompts], ours=begins_with(b"\nstep,prompt,wall_ms"))


def _policy(  # noqa: PLR0917 - the options of `run`
    name: str,
    meta: TraceMetadata,
    size: CacheSize,
    predictor: Path | None,
    train: Path | None,
    width: int | None,
    threshold: float,
    seed: int,
) -> tuple[Policy, Online, Budget]:
    """The policy of a name, its decisions beside the model, and its budget."""
    from moe_beyond.advisor.plans import ANTICIPATE, Fetch, TrainingData, parse_plan  # noqa: PLC0415
    from moe_beyond.predictor.runtime import OnnxPredictor  # noqa: PLC0415
    from moe_beyond.simulator.policies.online_prediction import predicted  # noqa: PLC0415
    from moe_beyond.simulator.policies.settings import PolicySettings  # noqa: PLC0415

    plan = parse_plan(name, Fetch(width or meta.top_k, threshold), None)
    settings = PolicySettings().of_seed(seed)
    data = TrainingData.none(plan.policy, settings)
    if train is not None:
        data = TrainingData(read_trace(train), settings=settings)
        meta.require_same_model(data.trace.metadata, f"training trace {train}")
    if not plan.predicts:
        policy = data.policy(plan, None)
        online = policy.online(meta)
    else:
        if predictor is None:
            raise InputError(f"policy {name!r} needs a predictor; name its folder with --predictor")
        evicts = plan.policy == ANTICIPATE
        policy, online = predicted(
            OnnxPredictor(predictor).beside_a_model(),
            meta,
            data.popularity_LE if evicts else None,
            None if evicts else data.fitted(plan.policy),
            0 if plan.fetch is None else plan.fetch.width,
            threshold,
            layers=plan.fetch is not None and plan.fetch.layers,
            next_token=plan.fetch is not None and plan.fetch.next_token,
        )
    return policy, online, data.budget(plan, policy, meta, size)


@app.command("measure-device")
def measure(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]",
            help="Folder on the drive of the experts; without it they lie in memory if there is a graphics card, else "
            "on the drive of this folder.",
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Device file to write, ending in .yaml.")] = Path("measured_device.yaml"),
    as_json: AsJson = False,
) -> None:
    """Measure this machine for a minute: its drive past the page cache, or its card, and the processor; no engine."""
    check_device_output(out)

    from moe_beyond.devices.device import dump_device  # noqa: PLC0415
    from moe_beyond.files import replacing  # noqa: PLC0415
    from moe_beyond.live.measure import measure_device  # noqa: PLC0415

    device, found = measure_device(folder, out.stem)
    with replacing(out) as temporary:
        temporary.write_text(dump_device(device), encoding="utf-8")
    show({"device": str(out), **found}, as_json)
