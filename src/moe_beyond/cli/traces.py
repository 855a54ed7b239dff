"""Commands on traces alone: import, export, describe, assess."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from moe_beyond.cli.common import AsJson, TracePath, app, named, one_line_errors, read_trace, show
from moe_beyond.errors import InputError, naming

ParquetPath = Annotated[Path, typer.Argument(help="A Parquet file, or a folder of them.", callback=named)]


NumExperts = Annotated[int | None, typer.Option(help="Experts of a layer, where nothing else says it.", min=2)]
TopK = Annotated[int | None, typer.Option(help="Experts per token, where nothing else says it.", min=1)]


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
    hidden_states: Annotated[
        Path | None, typer.Option(help="Also write the routers' inputs as .npy, tokens x layers x width (float16).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read published traces, check them, and write them as Parquet. The format `auto` is recognised and named."""
    import numpy as np  # noqa: PLC0415

    from moe_beyond.files import replacing  # noqa: PLC0415
    from moe_beyond.formats import importers  # noqa: PLC0415 - each command imports what it needs: `--help` stays quick
    from moe_beyond.formats.describe import describe_path  # noqa: PLC0415
    from moe_beyond.traces import store  # noqa: PLC0415

    with one_line_errors():
        if format == "auto":
            format = _recognised(source)  # noqa: A001 - the word on the command line
        shape = importers.ShapeOverride(
            moe_layers, expert_size, num_experts, top_k, hidden_size, model_id, prefill_tokens
        )
        trace = importers.read(format, source, domain=domain, held_out=held_out, privacy=privacy, shape=shape)
        hidden_TLD = None if hidden_states is None else importers.read_hidden(format, source, shape)
        store.write_parquet(trace, out)
        if hidden_states is not None and hidden_TLD is not None:
            with replacing(hidden_states) as temporary, temporary.open("wb") as stream:
                np.save(stream, hidden_TLD)
        show(describe_path(out), as_json)


@app.command("export")
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
def assess(
    trace: Annotated[
        Path, typer.Argument(help="A trace as Parquet or working form, or counts with --counts.", callback=named)
    ],
    *,
    counts: Annotated[
        str | None,
        typer.Option(
            help="The file holds counts of this format (imatrix, coli-usage, ...), or auto: coverage, no verdict."
        ),
    ] = None,
    num_experts: NumExperts = None,
    top_k: TopK = None,
    as_json: AsJson = False,
) -> None:
    """Assess from a trace alone whether offloading the model's experts pays; from counts, what pinning covers."""
    from moe_beyond.assess.assessment import assess as judge  # noqa: PLC0415
    from moe_beyond.params import Params  # noqa: PLC0415

    with one_line_errors():
        if counts is not None:
            show(_assess_counts(trace, counts, num_experts, top_k), as_json)
            return
        routing = read_trace(trace)
        with naming(trace):
            card = judge(routing, Params().assess).card
        show(card, as_json)


def _assess_counts(source: Path, format_: str, num_experts: int | None, top_k: int | None) -> dict[str, Any]:
    from moe_beyond.assess.counts import assess_counts  # noqa: PLC0415
    from moe_beyond.formats.count_files import COUNT_FORMATS, read_counts  # noqa: PLC0415
    from moe_beyond.formats.importers import ShapeOverride  # noqa: PLC0415
    from moe_beyond.formats.recognise import recognise  # noqa: PLC0415

    if format_ == "auto":
        _, format_, reason = recognise(source)
        if format_ not in COUNT_FORMATS:
            raise InputError(f"{source}: {format_}: {reason}; a trace, no counts: import it")
        print(f"{source}: read as {format_}: {reason}", file=sys.stderr)  # noqa: T201 - what was recognised, for a person
    return assess_counts(read_counts(format_, source, ShapeOverride(num_experts=num_experts, top_k=top_k)))
