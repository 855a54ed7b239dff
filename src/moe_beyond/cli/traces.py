"""Commands on traces alone: import, export, describe, assess."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from moe_beyond.cli.common import (
    App,
    AsJson,
    Beside,
    CountFormat,
    NumExperts,
    TopK,
    TracePath,
    app,
    known_tables_of,
    named,
    read_counts_of,
    read_trace,
    show,
)
from moe_beyond.cli.groups import WHOLE_TRACE, FormatFirst
from moe_beyond.errors import InputError, naming
from moe_beyond.files import check_output, never

exports = App(
    cls=FormatFirst,
    help="Write traces for others (hub, moe-beyond-csv, parquet), or `placement`: experts for an engine to keep.",
    no_args_is_help=True,
)
app.add_typer(exports, name="export")
ParquetPath = Annotated[Path, typer.Argument(help="A Parquet file, or a folder of them.", callback=named)]


def _recognised(source: Path) -> str:
    """The format of a trace, named on stderr with the reason."""
    from moe_beyond.formats.importers.sources import counts_are_no_trace  # noqa: PLC0415
    from moe_beyond.formats.recognise import recognise  # noqa: PLC0415

    kind, found, reason = recognise(source)
    if kind == "counts":
        raise InputError(counts_are_no_trace(str(source), found))
    print(f"{source}: read as {found}: {reason}", file=sys.stderr)  # noqa: T201 - what was recognised, for a person
    return found


@app.command("import")
def import_traces(
    format: Annotated[str, typer.Argument(help="auto, mbolt, vllm-npz, ...; a wrong name lists them all.")],  # noqa: A002
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
    num_experts: NumExperts = None,
    top_k: TopK = None,
    hidden_size: Annotated[
        int | None, typer.Option(help="Width of the hidden states among the ids (lucebox).", min=1)
    ] = None,
    model_id: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    prefill_tokens: Annotated[
        str | None,
        typer.Option(
            help="How many of a prompt's first tokens were prefill, or all, where the format does not say it."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read published traces, check them, and write them as Parquet. The format `auto` is recognised and named."""
    from moe_beyond.formats import importers  # noqa: PLC0415 - each command imports what it needs: `--help` stays quick
    from moe_beyond.formats.describe import describe_path  # noqa: PLC0415
    from moe_beyond.traces import store  # noqa: PLC0415

    check_output(out, inputs=[source], ours=store.is_trace_file)
    if format == "auto":
        format = _recognised(source)  # noqa: A001 - the word on the command line
    shape = importers.ShapeOverride(moe_layers, expert_size, num_experts, top_k, hidden_size, model_id, prefill_tokens)
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

    check_output(out, inputs=[trace], ours=store.is_trace_file if format == "parquet" else None)
    routing = read_trace(trace)
    with naming(trace):
        export(format, routing, out, lambda public: hub_tables(judge(public, Params().assess)))


@app.command()
def describe(trace: ParquetPath, as_json: AsJson = False) -> None:
    """Describe a trace: model, prompts, tokens, columns, origin, size."""
    from moe_beyond.formats.describe import describe_path  # noqa: PLC0415

    show(describe_path(trace), as_json)


@app.command()
def assess(
    trace: Annotated[
        Path, typer.Argument(help="A trace as Parquet or working form, or counts with --counts.", callback=named)
    ],
    *,
    beside: Beside = None,
    figure: Annotated[
        Path | None, typer.Option(help="SVG or PNG to draw LRU's hit rates into, beside those of other models.")
    ] = None,
    counts: CountFormat = None,
    num_experts: NumExperts = None,
    top_k: TopK = None,
    as_json: AsJson = False,
) -> None:
    """Assess from a trace alone whether offloading the model's experts pays; compare it with other models.

    From counts it says what pinning covers, and no verdict.
    """
    from moe_beyond.assess.assessment import assess as judge  # noqa: PLC0415
    from moe_beyond.assess.counts import assess_counts  # noqa: PLC0415
    from moe_beyond.params import Params  # noqa: PLC0415

    if counts is not None:
        if beside or figure is not None:
            raise InputError(f"{trace}: counts have no curves of LRU; leave --beside and --figure out")
        show(assess_counts(read_counts_of(trace, counts, num_experts, top_k)), as_json)
        return
    if figure is not None and figure.suffix not in (".svg", ".png"):
        raise InputError(f"{figure}: a figure ends in .svg or .png")
    if figure is not None:  # nothing in a picture says who drew it
        check_output(figure, inputs=[trace], ours=never)
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
