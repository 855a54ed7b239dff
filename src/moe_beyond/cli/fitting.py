"""fit-device: a device from recordings of an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moe_beyond.cli.common import AsJson, app, check_device_output, one_line_errors, read_trace, show
from moe_beyond.errors import InputError


@app.command("fit-device")
def fit_device(
    recordings: Annotated[
        list[Path],
        typer.Argument(help="CSVs: rows of tokens (read_bytes, wall_ms) or of runs (hit_rate, tok_s)."),
    ],
    out: Annotated[Path, typer.Option(help="Device file to write, ending in .yaml.")],
    *,
    trace: Annotated[Path | None, typer.Option(help="Trace of the model: it says the next four.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="MoE layers.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Experts of a token in each.")] = None,
    expert_mib: Annotated[float | None, typer.Option(min=0.001, help="Size of an expert.")] = None,
    dense_mib: Annotated[float | None, typer.Option(min=0, help="Size of all other weights of a token.")] = None,
    lanes: Annotated[list[int] | None, typer.Option(min=1, help="Requests at once, one for each recording.")] = None,
    at_lanes: Annotated[int | None, typer.Option(min=1, help="Those of the device; by default the most.")] = None,
    overlap: Annotated[bool, typer.Option("--overlap", help="The engine to model computes while it loads.")] = False,
    miss: Annotated[Literal["load", "compute"], typer.Option(help="What the engine did with a miss.")] = "load",
    link_gb_per_s: Annotated[float | None, typer.Option(min=1e-6, help="If measured elsewhere.")] = None,
    memory_gb_per_s: Annotated[float | None, typer.Option(min=1e-6, help="If measured elsewhere.")] = None,
    source: Annotated[str | None, typer.Option(help="Repository, commit and date of the recordings.")] = None,
    base: Annotated[Path | None, typer.Option(help="Device that knows the link: fit memory of another model.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="CSV of prompts too: prompt_tokens, prefill_ms or prefill_tok_s, misses.")
    ] = None,
    start_s: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds in which the engine started, with --model-gib.")
    ] = None,
    model_gib: Annotated[float | None, typer.Option(min=0.001, help="Size of all weights, with --start-s.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a device to recordings of an engine, with the interval of each number and the error on what was held out."""
    from moe_beyond.devices.device import dump_device, load_device  # noqa: PLC0415
    from moe_beyond.devices.expected import Shape  # noqa: PLC0415
    from moe_beyond.devices.fit import Known, fit, refit_memory  # noqa: PLC0415
    from moe_beyond.devices.prefill import fit_prefill, read_prompts  # noqa: PLC0415
    from moe_beyond.devices.recordings import read_recording  # noqa: PLC0415
    from moe_beyond.devices.workload import MIB, Workload, dense_size  # noqa: PLC0415
    from moe_beyond.files import replacing  # noqa: PLC0415

    with one_line_errors():
        check_device_output(out, *recordings, *filter(None, (trace, base, prompts)))
        if (start_s is None) != (model_gib is None):
            raise InputError("how fast does the engine start? give both --start-s and --model-gib, or neither")
        if lanes and len(lanes) != len(recordings):
            raise InputError(
                f"--lanes is given {len(lanes)} times, for {len(recordings)} recordings; give one for each"
            )
        if trace is not None:
            meta = read_trace(trace).metadata
            given = None if dense_mib is None else round(dense_mib * MIB)
            workload = Workload.of(meta, 0, dense_bytes=dense_size(meta, given, None)[0])
            sizes_L, dense = workload.expert_bytes_L, float(workload.dense_bytes_L.sum())
            shape = Shape(meta.num_layers, meta.top_k, float(sizes_L.mean()), dense)
        elif layers is None or top_k is None or expert_mib is None or dense_mib is None:
            raise InputError("which model? give --trace, or --layers, --top-k, --expert-mib and --dense-mib")
        else:
            shape = Shape(layers, top_k, expert_mib * MIB, dense_mib * MIB)
        read = [read_recording(path, lanes[i] if lanes else None) for i, path in enumerate(recordings)]
        if base is not None:
            fitted, notes = refit_memory(load_device(str(base)), read, shape, out.stem), tuple[str, ...]()
        else:
            known = Known(miss, overlap, at_lanes, link_gb_per_s, memory_gb_per_s, source)
            found = fit(read, shape, known, out.stem)
            fitted, notes = found.device, found.notes
        if prompts is not None:
            fitted = fit_prefill(fitted, shape, read_prompts(prompts), prompts.name)
        if start_s is not None and model_gib is not None:
            start_gb_per_s = float(f"{model_gib * 2**30 / 1e9 / start_s:.4g}")
            fitted = fitted.model_copy(update={"start_gb_per_s": start_gb_per_s})
        with replacing(out) as temporary:
            temporary.write_text(dump_device(fitted), encoding="utf-8")
        numbers = fitted.model_dump(exclude_defaults=True, exclude={"name", "about", "recording"}, exclude_none=True)
        show({"device": str(out), **numbers, "notes": list(notes)}, as_json)
