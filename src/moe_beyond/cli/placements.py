"""The command `export placement`: experts that an engine keeps in fast memory, in its own file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_beyond.cli.caches import BudgetMib, DenseMib, DeviceName, Seed
from moe_beyond.cli.common import (
    AsJson,
    CountFormat,
    NumExperts,
    TracePath,
    named,
    read_counts_of,
    read_trace,
    show,
)
from moe_beyond.cli.traces import exports
from moe_beyond.errors import naming
from moe_beyond.files import check_output, never
from moe_beyond.settings import DEFAULT_SEED


@exports.command("placement")
def export_placement(
    format: Annotated[str, typer.Argument(help="strata-strp, ...; a wrong name lists them all.")],  # noqa: A002
    trace: TracePath,
    out: Annotated[Path, typer.Argument(help="File to write.", callback=named)],
    *,
    budget_mib: BudgetMib = None,
    slots: Annotated[
        int | None, typer.Option(help="Experts of each layer, instead of a budget; on average where layers differ.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Trace of other prompts that judges; else some of TRACE's own do.")
    ] = None,
    counts: CountFormat = None,
    num_experts: NumExperts = None,
    expert_size: Annotated[
        str | None, typer.Option(help="Bytes of one expert, where counts have no config.json beside them.")
    ] = None,
    device: DeviceName = "gpu_pcie4_wsl",
    dense_mib: DenseMib = None,
    model_layers: Annotated[
        int | None, typer.Option(help="Layers of the model, dense ones too, where some follow the last with experts.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts per token, where counts do not say it.")] = None,
    engine: Annotated[str | None, typer.Option(help="colibri's name of its engine: olmoe, glm_moe_dsa, ...")] = None,
    arch: Annotated[
        str | None, typer.Option(help="The GGUF's architecture, for llama.cpp's tensor names: qwen3moe, gpt-oss, ...")
    ] = None,
    ep_size: Annotated[int, typer.Option(help="Ranks that SGLang deals experts out to.")] = 1,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Write it though pinning loses, or nothing judges it.")
    ] = False,
    seed: Seed = DEFAULT_SEED,
    as_json: AsJson = False,
) -> None:
    """Write the most used experts as an engine loads them, with their hit rate on other prompts beside LRU's."""
    from moe_beyond.advisor import placement_file  # noqa: PLC0415
    from moe_beyond.devices.device import load_device  # noqa: PLC0415
    from moe_beyond.devices.workload import MIB  # noqa: PLC0415
    from moe_beyond.formats.placements import Options, of_name  # noqa: PLC0415

    of_name(format)
    # an engine's own record of its experts would look just as this file does
    check_output(out, inputs=filter(None, [trace, test]), ours=never)
    order = placement_file.Order(
        format,
        load_device(device),
        budget_bytes=None if budget_mib is None else round(budget_mib * MIB),
        slots=slots,
        model_layers=model_layers,
        top_k=top_k,
        dense_bytes=None if dense_mib is None else round(dense_mib * MIB),
        options=Options(engine, arch, ep_size),
        anyway=anyway,
        seed=seed,
    )
    routing = read_trace(trace) if counts is None else read_counts_of(trace, counts, num_experts, None, expert_size)
    judged = None if test is None else read_trace(test)
    with naming(trace):
        found = placement_file.export_placement(order, routing, out, judged)
    show(found, as_json)
