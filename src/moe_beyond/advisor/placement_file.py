"""An engine's file of pinned experts, with what those very experts were worth on prompts that they do not come from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moe_beyond.advisor.held_out import divide
from moe_beyond.advisor.pinning import Verdict, judge, pairs_LEE
from moe_beyond.devices.device import NO_RECORDING, Device
from moe_beyond.devices.workload import ASSUMED_DENSE, MIB
from moe_beyond.errors import InputError
from moe_beyond.formats.counts import ExpertCounts, count_experts
from moe_beyond.formats.placements import FORMATS, Options, Placement, encode, load_line, of_name
from moe_beyond.settings import DEFAULT_SEED
from moe_beyond.traces.schema import Trace

_WITH_PAIRS = "mbolt-perms"
_LOSSY = "0xbakeer-coverage"
_NO_FIGURE = "What these experts are worth is not known: nothing that they were not made from judged them."


@dataclass(frozen=True)
class Order:
    """What to write.

    Attributes:
        format: One of `formats.placements.FORMATS`.
        device: Where the modelled times are taken.
        budget_bytes: Memory for experts; or
        slots: as many experts a layer.
        model_layers: Layers of the model, dense ones too; None: the last MoE layer is its last.
        top_k: Experts per token, where counts do not say it.
        dense_bytes: All weights beside the experts; None: as traced, else assumed.
        options: What single formats need.
        anyway: Write it where pinning loses, or where nothing can judge it.
        seed: Of the interval.
    """

    format: str
    device: Device
    budget_bytes: int | None = None
    slots: int | None = None
    model_layers: int | None = None
    top_k: int | None = None
    dense_bytes: int | None = None
    options: Options = field(default_factory=Options)
    anyway: bool = False
    seed: int = DEFAULT_SEED


def export_placement(
    order: Order, source: Trace | ExpertCounts, out: Path, test: Trace | None = None
) -> dict[str, Any]:
    """Write a placement, unless pinning loses against an LRU cache of the same size.

    Args:
        order: What to write.
        source: Prompts, of which some judge where `test` does not; or counts alone, which need a `test` to be judged.
        out: The file.
        test: Prompts to judge on; those that `source` holds too are left out.

    Returns:
        For JSON: the file, what it was made from, the figure, how the engine is told, notes.

    Raises:
        InputError: Pinning loses, or nothing can judge it, and the order does not say to write it anyway; or what the
            format cannot say, of which the message tells.
    """
    chosen = of_name(order.format)
    made, judged, notes = _parts(source, test, anyway=order.anyway)
    counts = count_experts(made) if isinstance(made, Trace) else made
    if order.top_k is not None and counts.top_k not in (None, order.top_k):
        raise InputError(f"--top-k {order.top_k}: the source says {counts.top_k}; leave it out")
    together = pairs_LEE(made) if order.format == _WITH_PAIRS and isinstance(made, Trace) else None
    placement = Placement.of(
        replace(counts, top_k=counts.top_k or order.top_k),
        chosen.split,
        budget_bytes=order.budget_bytes,
        slots=order.slots,
        model_layers=order.model_layers,
        together_LEE=together,
    )
    encoded = encode(order.format, placement, order.options)
    verdict = None
    if judged is not None:
        verdict = judge(placement, judged, order.device, dense_bytes=order.dense_bytes, seed=order.seed)
    elif not order.anyway:
        raise InputError(
            "counts alone: no prompts judge what these experts are worth; give a trace of others with --test, or write "
            "the file with --anyway"
        )
    if verdict is not None and chosen.pins and not verdict.pays and not order.anyway:
        raise InputError(f"{verdict.sentence} on prompts that the file was not made from; --anyway writes it")
    encoded.save(out)
    sizes = placement.slots_L.tolist()
    return {
        "file": str(out),
        "format": order.format,
        "model": counts.model_id,
        "made_from": made.metadata.source if isinstance(made, Trace) else made.source,
        "made_from_prompts": made.num_prompts if isinstance(made, Trace) else None,
        "experts": placement.num_kept,
        "experts_of_a_layer": f"{min(sizes)} to {max(sizes)}" if min(sizes) < max(sizes) else sizes[0],
        "mib": None if placement.kept_bytes is None else placement.kept_bytes / MIB,
        "model_layers": placement.model_layers,
        "dense_layers": list(placement.model.dense_layers),
        "held_out": None if verdict is None else verdict.document(),
        "load": load_line(order.format, placement, out),
        "notes": [*_notes(order, verdict), *notes],
    }


def _parts(
    source: Trace | ExpertCounts, test: Trace | None, *, anyway: bool
) -> tuple[Trace | ExpertCounts, Trace | None, list[str]]:
    """What the placement is made from, what judges it, and how that was chosen."""
    if isinstance(source, ExpertCounts):
        if test is None:
            return source, None, [_NO_FIGURE]
        found = (test.metadata.layer_numbers, test.metadata.num_experts)
        if found != (source.layer_numbers, source.num_experts):
            raise InputError(
                f"test trace: its MoE layers and experts are not those of the counts, {source.num_layers} layers from "
                f"{source.layer_numbers[0]} on with {source.num_experts} experts; use traces of one model"
            )
        sized = replace(source, expert_bytes=source.expert_bytes or test.metadata.expert_bytes)
        return sized, test, ["Judged on the test trace; whether the counts hold its prompts is not known."]
    try:
        parts = divide(source, test)
    except InputError:
        if test is not None or not anyway:
            raise
        return source, None, [_NO_FIGURE]
    return parts.fit, parts.judge, [f"Judged {parts.how}."]


def _notes(order: Order, verdict: Verdict | None) -> list[str]:
    chosen = FORMATS[order.format]
    gain = None if verdict is None else verdict.gain
    within = gain is not None and gain.low is not None and gain.high is not None and gain.low <= 0 <= gain.high
    notes = {
        f"{verdict.sentence[:1].upper()}{verdict.sentence[1:]}." if verdict else "": verdict is not None,
        "The difference to LRU lies within what the choice of prompts makes.": within,
        "This file orders, balances or sizes experts and pins none: the figures are those of pinning by it.": (
            not chosen.pins
        ),
        "Experts that are not kept cannot be chosen: the model's outputs change.": order.format == _LOSSY,
        "The last layer with experts is taken to be the model's last; give --model-layers where others follow.": (
            order.model_layers is None
        ),
        ASSUMED_DENSE: verdict is not None and verdict.dense_from == "assumed",
        NO_RECORDING: verdict is not None and order.device.recording is None and order.device.fit_error is None,
    }
    return [note for note, applies in notes.items() if applies]
