"""card: what a model weighs and what devices can reach with it, from the first bytes of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_beyond.cli.common import AsJson, Beside, app, known_tables_of, named, show
from moe_beyond.errors import InputError


@app.command()
def card(
    headers: Annotated[
        Path,
        typer.Argument(help="GGUF or safetensors file, its first bytes, an index, or their folder.", callback=named),
    ],
    *,
    device: Annotated[list[str] | None, typer.Option(help="A name or .yaml file; by default the package's.")] = None,
    memory_gib: Annotated[float | None, typer.Option(min=0.001, help="Fast memory for all weights.")] = None,
    budget_mib: Annotated[float | None, typer.Option(min=0, help="Size of the experts' cache, instead.")] = None,
    beside: Beside = None,
    as_json: AsJson = False,
) -> None:
    """Tell before the download how a model's bytes lie and how fast devices can decode it, at best and at worst."""
    from moe_beyond.assess.before_download import card as judge  # noqa: PLC0415
    from moe_beyond.assess.before_download import sentences  # noqa: PLC0415
    from moe_beyond.assess.known import known_curves  # noqa: PLC0415
    from moe_beyond.devices.device import known_devices, load_device  # noqa: PLC0415
    from moe_beyond.formats.headers import read_sizes  # noqa: PLC0415

    if memory_gib is not None and budget_mib is not None:
        raise InputError("give either --memory-gib, for all weights, or --budget-mib, for the experts' cache")
    devices = [load_device(name) for name in device or known_devices()]
    curves = known_curves([table for table, _ in known_tables_of(beside or ["known"])])
    found = judge(
        read_sizes(headers),
        devices,
        curves,
        budget_bytes=None if budget_mib is None else round(budget_mib * 2**20),
        memory_bytes=None if memory_gib is None else round(memory_gib * 2**30),
    )
    if as_json:
        show(found, as_json)
        return
    from rich.console import Console  # noqa: PLC0415

    for sentence in [*sentences(found), *found["notes"]]:
        Console().print(sentence, markup=False, highlight=False, soft_wrap=True)
