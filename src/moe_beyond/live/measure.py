"""A device file from measurements on this machine, without an engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from moe_beyond.devices.device import LARGE_ERROR, Device
from moe_beyond.live.link_speed import LANES, SIZES, Curve, LinkFit, card, curve_of, drive
from moe_beyond.live.processor_speed import measure_processor


def measure_device(folder: Path | None, name: str) -> tuple[Device, dict[str, Any]]:
    """Measure the link that experts come through, and the processor that uses them: about a minute.

    Args:
        folder: On the drive that experts will lie on; None: they lie in memory and are copied to the card where there
            is one, else on the drive of the working folder.
        name: Of the device.

    Returns:
        The device, and for JSON all that was measured, with sentences on how sure it is under `notes`.

    Raises:
        InputError: As `link_speed.drive`.
    """
    has_card, cores = torch.cuda.is_available(), len(os.sched_getaffinity(0))
    busy = os.getloadavg()[0]
    links: dict[str, Curve] = {}
    if folder is not None or not has_card:
        with drive(folder or Path()) as measure:
            links["drive"] = curve_of(measure)
    if has_card:
        links["card"] = curve_of(card())
    processor = measure_processor(cores)
    # what comes from a drive to a card passes both, and takes what the slower takes
    fits = {link: LinkFit.of(curve) for link, curve in links.items()}
    slowest = min(fits, key=lambda link: fits[link].gb_per_s)
    fit = fits[slowest]
    # weights are read to compute with them
    reads = min(processor.memory_gb_per_s, processor.expert_gb_per_s)
    low, high = fit.gb_per_s_range
    device = Device(
        name=name,
        about=(
            f"Measured: the {slowest} at {fit.lanes} lanes, {low:.3g} to {high:.3g} GB/s by round, up to "
            f"{fit.error:.0%} off at single sizes; experts computed on {processor.where} read {reads[1]:.3g} to "
            f"{reads[2]:.3g} GB/s. Layers have the time of a router alone: no engine ran."
        ),
        link_gb_per_s=round(fit.gb_per_s, 4),
        setup_us=round(fit.setup_us, 2),
        lanes=fit.lanes,
        link_curve=links[slowest].points if fit.error > LARGE_ERROR else (),
        memory_gb_per_s=round(reads[0], 3),
        layer_overhead_us=round(processor.layer_us[0], 2),
    )
    notes = {
        f"{busy:.1f} programs ran at the start on {cores} cores: measure an idle machine.": busy > cores / 2,
        f"Rounds of the {slowest} differ from {low:.3g} to {high:.3g} GB/s: measure again, and give a range.": (
            high / low - 1 > LARGE_ERROR
        ),
        f"One bandwidth and one setup miss the {slowest}'s times by up to {fit.error:.0%}: the file holds the curve.": (
            fit.error > LARGE_ERROR
        ),
        f"Computing experts differs from {reads[1]:.3g} to {reads[2]:.3g} GB/s by round.": (
            reads[2] / reads[1] - 1 > LARGE_ERROR
        ),
        "A layer has the time of its router; what an engine takes beside it shows in a recording alone "
        "(calibrate-device).": True,
    }
    return device, {
        **device.model_dump(
            include={"link_gb_per_s", "setup_us", "lanes", "memory_gb_per_s", "layer_overhead_us"},
        ),
        "link_measured": slowest,
        "link_gb_per_s_by_round": [low, high],
        "link_error": fit.error,
        **{f"{link}_gb_per_s": _table(curve.median_BN) for link, curve in links.items()},
        **{f"{link}_spread": _table(curve.spread_BN) for link, curve in links.items()},
        "processor": vars(processor),
        "load_average": busy,
        "notes": [note for note, applies in notes.items() if applies],
    }


def _table(values_BN: Any) -> dict[str, dict[str, float]]:
    return {
        f"{size // 1024}_kib": {f"{lanes}_lanes": float(value) for lanes, value in zip(LANES, values_N, strict=True)}
        for size, values_N in zip(SIZES, values_BN, strict=True)
    }
