"""Commands on traces alone: import, export, describe, assess."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moe_beyond.cli.common import (
    App,
    AsJson,
    Beside,
    TracePath,
    app,
    known_tables_of,
    named,
    one_line_errors,
    read_trace,
    show,
)
from moe_beyond.cli.groups import WHOLE_TRACE, FormatFirst
from moe_beyond.errors import InputError, naming
from moe_beyond.files import check_output

exports = App(
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
        check_output(out, inputs=[source], ours=store.is_trace_file)
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
    """Write traces for others: a dataset folder for the Hub, with hit curves and card, or the paper's CSVs."""
    from moe_beyond.assess.assessment import assess as judge  # noqa: PLC0415
    from moe_beyond.assess.known import hub_tables  # noqa: PLC0415
    from moe_beyond.formats.export import export  # noqa: PLC0415
    from moe_beyond.params import Params  # noqa: PLC0415
    from moe_beyond.traces import store  # noqa: PLC0415

    with one_line_errors():
        check_output(out, inputs=[trace], ours=store.is_trace_file if format == "parquet" else None)
        routing = read_trace(trace)
        with naming(trace):
            export(format, routing, out, lambda public: hub_tables(judge(public, Params().assess)))


@app.command()
def describe(trace: ParquetPath, as_json: AsJson = False) -> None:
    """Describe a trace: model, prompts, tokens, columns, origin, size."""
    from moe_beyond.formats.describe import describe_path  # noqa: PLC0415

    with one_line_errors():
        show(describe_path(trace), as_json)


@app.command()
def assess(
    trace: TracePath,
    *,
    beside: Beside = None,
    figure: Annotated[
        Path | None, typer.Option(help="SVG or PNG to draw LRU's hit rates into, beside those of other models.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Assess from a trace alone whether offloading the model's experts pays; compare it with other models."""
    from moe_beyond.assess.assessment import assess as judge  # noqa: PLC0415
    from moe_beyond.params import Params  # noqa: PLC0415

    with one_line_errors():
        if figure is not None and figure.suffix not in (".svg", ".png"):
            raise InputError(f"{figure}: a figure ends in .svg or .png")
        if figure is not None:  # nothing in a picture says who drew it
            check_output(figure, inputs=[trace], ours=lambda _path: False)
        others = known_tables_of(beside or (["known"] if figure else []))
        routing = read_trace(trace)
        with naming(trace):
            assessment = judge(routing, Params().assess)
        if not others:
            show(assessment.card, as_json)
            return
        from moe_beyond.assess.known import beside_table, hub_tables, known_curves  # noqa: PLC0415
        from moe_beyond.reporting.beside import draw, print_beside  # noqa: PLC0415

        own = hub_tables(assessment, f"{assessment.card['model_id']} (this trace)")
        curves = known_curves([own["hit_curves"], *(table for table, _ in others)])
        rows = beside_table(curves, [own["card"], *(table for _, table in others)])
        if figure is not None:
            draw(curves, figure)
        if as_json:
            show({**assessment.card, "beside": rows}, as_json)
        else:
            show(assessment.card, as_json)
            print_beside(rows)
