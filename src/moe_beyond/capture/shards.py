"""Captures prompts shard by shard: bounded memory, progress, and an interrupted run goes on with the same bytes.

A shard is a Parquet file of so many prompts, with a folder of their hidden states. It is a function of its prompts, the
model, the parameters and the seed, not of the shards before it; so finished ones can be kept, and several processes can
each take some. Routers come last: all shards decide whether they choose as recorded.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moe_beyond.capture.discovery import MoELayer, moe_layers
from moe_beyond.capture.generation import keeps_hidden, require_context, route_batch
from moe_beyond.capture.hooks import RoutingRecorder
from moe_beyond.capture.models import LoadedModel, ModelSource, library_versions, load
from moe_beyond.capture.routers import confirmed_routers
from moe_beyond.errors import InputError
from moe_beyond.files import fingerprint, replacing, scratch_folder
from moe_beyond.parallel import run_tasks
from moe_beyond.threads import torch_threads
from moe_beyond.traces import store
from moe_beyond.traces.hidden import beside, write_routers
from moe_beyond.traces.schema import RoutedPrompt, Trace, TraceMetadata, trace_of, validate

if TYPE_CHECKING:
    from moe_beyond.capture.prompts import EncodedPrompt
    from moe_beyond.capture.settings import ExtractSettings


@dataclass(frozen=True)
class CaptureJob:
    """All that decides the bytes of a capture, but for the prompts.

    Attributes:
        model: What to load.
        model_id: Its name in the trace.
        source: Where the prompts come from, for the trace's metadata.
        licence: Of the prompts.
        settings: How to capture.
        seed: Of sampling.
        threads: Of torch; 1 is fastest for small models, None: torch's choice.
    """

    model: ModelSource
    model_id: str
    source: str
    licence: str
    settings: ExtractSettings
    seed: int
    threads: int | None = None


def count(traces: Iterable[Trace]) -> dict[str, int]:
    """Prompts, tokens, decode_tokens and prefill_tokens of several traces together."""
    totals = Counter[str]()
    for trace in traces:
        prefill = int(trace.num_prefill_P.sum())
        totals["prompts"] += trace.num_prompts
        totals["tokens"] += trace.num_tokens
        totals["decode_tokens"] += trace.num_tokens - prefill
        totals["prefill_tokens"] += prefill
    return dict(totals)


def capture(job: CaptureJob, prompts: list[EncodedPrompt], root: Path, output: Path) -> dict[str, int]:
    """Trace `prompts` into the Parquet files of `output`; returns their counts.

    Args:
        job: Model and parameters.
        prompts: What to trace, in order; ids must be distinct.
        root: The project's root. Shards of this very job and these prompts wait in its `.scratch` until all are done.
        output: Replaced as a whole then.

    Raises:
        InputError: No prompts, a model that cannot be traced, or hidden states of a layer that it has not.
    """
    if not prompts:
        raise InputError("no prompts to trace; give at least one")
    loaded = load(job.model)
    require_context(loaded.model, prompts, job.settings.decode_tokens)
    layers = moe_layers(loaded.model)
    _announce_hidden(job, prompts, loaded, len(layers))
    with scratch_folder(root, "extract", capture_key(job, prompts, loaded.revision)) as unfinished:
        _remove_half_written(unfinished)
        paths = _capture_missing(job, prompts, unfinished)
        counts = count(store.read_parquet(path, hidden=False) for path in paths)
        if job.settings.kept_hidden != "none":
            _add_routers(loaded, layers, paths)
        _remove_half_written(unfinished)
        with replacing(output) as temporary:
            # shutil, not rename: scratch and output may lie on different disks
            shutil.move(unfinished, temporary)
    return counts


def capture_key(job: CaptureJob, prompts: list[EncodedPrompt], revision: str) -> str:
    """Names the bytes that a capture will have. How many processes share the work does not matter."""
    settings = job.settings.model_dump(exclude={"workers"})
    return fingerprint(
        asdict(job) | {"settings": settings}, [asdict(prompt) for prompt in prompts], revision, library_versions()
    )


def _capture_missing(job: CaptureJob, prompts: list[EncodedPrompt], folder: Path) -> list[Path]:
    """Trace the shards that `folder` lacks; the paths of all."""
    size = job.settings.shard_prompts
    shards = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    paths = [folder / f"part-{index:05d}-of-{len(shards):05d}.parquet" for index in range(len(shards))]
    waiting = [(shard, path) for shard, path in zip(shards, paths, strict=True) if not path.exists()]
    with _progress(job, [shard for shard, _ in waiting]) as advance:
        if job.settings.workers == 1:
            for shard, path in waiting:
                _capture_shard(job, shard, path, advance)
        else:
            # absolute: the processes of a cluster start elsewhere
            tasks = [(job, shard, path.resolve()) for shard, path in waiting]
            for tokens in run_tasks(_capture_shard, tasks, job.settings.workers):
                advance(tokens)
    return paths


def _announce_hidden(job: CaptureJob, prompts: list[EncodedPrompt], loaded: LoadedModel, num_layers: int) -> None:
    """Say, before hours of work, how much disk the hidden states will take."""
    settings, console = job.settings, Console(stderr=True, soft_wrap=True)
    if settings.kept_hidden == "none":
        if settings.hidden_states not in (None, "none"):
            console.print(
                f"no hidden states are kept: extract.privacy is {settings.privacy}, and they can tell the text"
            )
        return
    chosen = settings.hidden_layers or range(num_layers)
    if max(chosen) >= num_layers:
        raise InputError(f"extract.hidden_layers: {max(chosen)}; the model has MoE layers 0 to {num_layers - 1}")
    kept = [prompt for prompt in prompts if keeps_hidden(prompt.prompt_id, settings, job.seed)]
    tokens = sum(len(prompt.token_ids) + settings.decode_tokens for prompt in kept)
    width = int(loaded.model.config.get_text_config().hidden_size)
    values, what = len(chosen), "gate inputs"
    if settings.kept_hidden == "all":
        values, what = 2 * len(chosen) + 1, "gate and layer inputs, and final states"
    console.print(
        f"hidden states: at most {tokens * values * width * 2:,} bytes on disk; {tokens:,} tokens of {len(kept):,} "
        f"prompts, {len(chosen)} layers, {width} values of 2 bytes each; {what}",
        highlight=False,
    )


def _add_routers(loaded: LoadedModel, layers: list[MoELayer], paths: list[Path]) -> None:
    """Add the routers to the hidden states of all shards, or say why not."""
    routers, reason = confirmed_routers(loaded.model, layers, lambda: map(store.read_parquet, paths))
    if routers is None:
        Console(stderr=True, soft_wrap=True).print(f"warning: {reason}", highlight=False)
        return
    for path in paths:
        write_routers(routers, beside(path))


def _remove_half_written(folder: Path) -> None:
    """Remove what a killed process was writing; only a rename makes a shard."""
    # also within the folders of hidden states, where the routers were being written
    for path in [*folder.rglob(".*.tmp"), *folder.rglob(".*.old")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _capture_shard(
    job: CaptureJob, prompts: list[EncodedPrompt], path: Path, advance: Callable[[int], None] | None = None
) -> int:
    """Trace one shard and write it; the number of tokens."""
    loaded = load(job.model)
    layers = moe_layers(loaded.model)
    size, settings = job.settings.batch_prompts, job.settings
    captured: list[RoutedPrompt] = []
    recorder = RoutingRecorder(layers, settings.kept_hidden, settings.hidden_layers, loaded.model)
    with torch_threads(job.threads), recorder:
        for start in range(0, len(prompts), size):
            batch = route_batch(loaded.model, recorder, prompts[start : start + size], settings, job.seed)
            captured.extend(batch)
            if advance is not None:
                advance(sum(len(prompt.experts_TLK) for prompt in batch))
    trace = validate(_to_trace(job, loaded, layers, captured), job.model_id)
    # writes the Parquet file last: its presence means that the shard is complete
    store.write_parquet(trace, path)
    return trace.num_tokens


def _to_trace(job: CaptureJob, loaded: LoadedModel, layers: list[MoELayer], captured: list[RoutedPrompt]) -> Trace:
    settings, tokenizer = job.settings, loaded.tokenizer
    metadata = TraceMetadata(
        model_id=job.model_id,
        model_revision=loaded.revision,
        layer_numbers=tuple(layer.number for layer in layers),
        num_experts=layers[0].num_experts,
        top_k=captured[0].experts_TLK.shape[-1],
        expert_bytes=tuple(layer.expert_bytes for layer in layers),
        decoding=settings.decoding if settings.decode_tokens else "teacher-forced",
        source=job.source,
        licence=job.licence,
    )
    prompts: list[RoutedPrompt] = []
    for one in captured:
        ids_T = one.token_ids_T if settings.privacy != "routing" else None
        texts = (
            tokenizer.convert_ids_to_tokens(np.asarray(one.token_ids_T).tolist())
            if settings.privacy == "text"
            else None
        )
        weights_TLK = one.weights_TLK if settings.weights else None
        prompts.append(replace(one, weights_TLK=weights_TLK, token_ids_T=ids_T, token_texts=texts))
    return trace_of(metadata, prompts)


@contextmanager
def _progress(job: CaptureJob, waiting: list[list[EncodedPrompt]]) -> Iterator[Callable[[int], None]]:
    """A bar over the tokens of shards; yields the function that adds finished ones."""
    # early ends make it fewer
    total = sum(len(prompt.token_ids) + job.settings.decode_tokens for shard in waiting for prompt in shard)
    columns = (TextColumn("tracing"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=total)
        yield partial(progress.advance, bar)
        progress.update(bar, completed=total)
