"""Commands on traces alone: import, export, describe, assess."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moe_beyond.cli.common import AsJson, TracePath, app, named, one_line_errors, read_trace, show
from moe_beyond.cli.groups import WHOLE_TRACE, FormatFirst
from moe_beyond.errors import naming

exports = typer.Typer(
    cls=FormatFirst,
    help="Write traces for others (hub, moe-beyond-csv, parquet), or `placement`: experts for an engine to keep.",
    no_args_is_help=True,
)
app.add_typer(exports, name="export")
ParquetPath = Annotated[Path, typer.Argument(help="A Parquet file, or a folder of them.", callback=named)]


@app.command("import")
def import_traces(
    format: Annotated[str, typer.Argument(help="moe-beyond-csv, ...; a wrong name lists them all.")],  # noqa: A002
    source: Annotated[Path, typer.Argument(help="Folder, archive or file as it was published.", callback=named)],
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    *,
    domain: Annotated[str | None, typer.Option(help="Name of the data set; by default the source's.")] = None,
    held_out: Annotated[bool, typer.Option(help="Keep these prompts for testing only.")] = False,
    privacy: Annotated[
        Literal["text", "ids", "routing"],
        typer.Option(help="Keep token texts and ids, ids, or neither."),
    ] = "text",
    moe_layers: Annotated[
        str | None,
        typer.Option(help="Layers with experts, such as 1-47 or 1,3,5, instead of what config.json says."),
    ] = None,
    expert_size: Annotated[
        str | None,
        typer.Option(help="Bytes of one expert, or the GGUF type of its tensors (Q4_K), instead of config.json's."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read published traces, check them, and write them as Parquet."""
    from moe_beyond.formats import importers  # noqa: PLC0415 - each command imports what it needs: `--help` stays quick
    from moe_beyond.formats.describe import describe_path  # noqa: PLC0415
    from moe_beyond.traces import store  # noqa: PLC0415

    with one_line_errors():
        shape = importers.ShapeOverride(moe_layers, expert_size)
        trace = importers.read(format, source, domain=domain, held_out=held_out, privacy=privacy, shape=shape)
        store.write_parquet(trace, out)
        show(describe_path(out), as_json)


@exports.command(WHOLE_TRACE, hidden=True)
def export_traces(
    format: Annotated[str, typer.Argument(help="hub, moe-beyond-csv or parquet.")],  # noqa: A002
    trace: TracePath,
    out: Annotated[Path, typer.Argument(help="File or folder to write.")],
) -> None:
    """Write traces for others: a dataset folder for the Hub, or the paper's CSVs."""
    from moe_beyond.formats.export import export  # noqa: PLC0415

    with one_line_errors():
        routing = read_trace(trace)
        with naming(trace):
            export(format, routing, out)


@app.command()
def describe(trace: ParquetPath, as_json: AsJson = False) -> None:
    """Describe a trace: model, prompts, tokens, columns, origin, size."""
    from moe_beyond.formats.describe import describe_path  # noqa: PLC0415

    with one_line_errors():
        show(describe_path(trace), as_json)


@app.command()
def assess(trace: TracePath, as_json: AsJson = False) -> None:
    """Assess from a trace alone whether offloading the model's experts pays."""
    from moe_beyond.assess.assessment import assess as judge  # noqa: PLC0415
    from moe_beyond.params import Params  # noqa: PLC0415

    with one_line_errors():
        routing = read_trace(trace)
        with naming(trace):
            card = judge(routing, Params().assess).card
        show(card, as_json)
