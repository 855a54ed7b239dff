"""moe-beyond on the command line: thin over the library. `--json` prints one JSON document, errors are one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from moe_beyond.config import Params, flatten
from moe_beyond.errors import InputError
from moe_beyond.traces import store
from moe_beyond.traces.export import FORMATS as EXPORT_FORMATS
from moe_beyond.traces.importers import FORMATS as IMPORT_FORMATS

app = typer.Typer(
    help="Which experts of a Mixture-of-Experts model come next, and what is it worth to know?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
TracePath = Annotated[Path, typer.Argument(help="A Parquet file, or a folder of them.")]
RESAMPLES = 1000
PredictorPath = Annotated[Path, typer.Option(help="Folder that the export stage wrote.")]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End with status 1 and one line for what a person can mend."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the one line that a person reads
        raise typer.Exit(1) from error


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a document: as JSON, or as a table of its leaves."""
    if as_json:
        print(json.dumps(result, indent=2))  # noqa: T201 - the command's output
        return
    table = Table(show_header=False, box=None)
    for key, value in flatten(result).items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(key, shown)
    Console().print(table)


@app.command("import")
def import_traces(
    format: Annotated[str, typer.Argument(help=f"One of {', '.join(IMPORT_FORMATS)}.")],  # noqa: A002
    source: Annotated[Path, typer.Argument(help="Folder, archive or file as it was published.")],
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    *,
    domain: Annotated[str | None, typer.Option(help="Name of the data set; by default the source's.")] = None,
    held_out: Annotated[bool, typer.Option(help="Keep these prompts for testing only.")] = False,
    privacy: Annotated[
        Literal["text", "ids", "routing"],
        typer.Option(help="Keep token texts and ids, ids, or neither."),
    ] = "text",
    as_json: AsJson = False,
) -> None:
    """Read published traces, check them, and write them as Parquet."""
    from moe_beyond.traces import importers  # noqa: PLC0415 - each command imports what it needs: `--help` stays quick
    from moe_beyond.traces.describe import describe_path  # noqa: PLC0415

    with one_line_errors():
        store.write_parquet(importers.read(format, source, domain=domain, held_out=held_out, privacy=privacy), out)
        show(describe_path(out), as_json)


@app.command("export")
def export_traces(
    format: Annotated[str, typer.Argument(help=f"One of {', '.join(EXPORT_FORMATS)}.")],  # noqa: A002
    trace: TracePath,
    out: Annotated[Path, typer.Argument(help="File or folder to write.")],
) -> None:
    """Write traces for others: a dataset folder for the Hub, or the paper's CSVs."""
    from moe_beyond.traces.export import export  # noqa: PLC0415

    with one_line_errors():
        export(format, store.read_parquet(trace), out)


@app.command()
def describe(trace: TracePath, as_json: AsJson = False) -> None:
    """Say what a trace holds: model, prompts, tokens, columns, origin, size."""
    from moe_beyond.traces.describe import describe_path  # noqa: PLC0415

    with one_line_errors():
        show(describe_path(trace), as_json)


@app.command()
def assess(trace: TracePath, as_json: AsJson = False) -> None:
    """Say from a trace alone whether offloading the model's experts pays."""
    from moe_beyond.assessment import assess as judge  # noqa: PLC0415

    with one_line_errors():
        card = judge(store.read_parquet(trace), Params().assess).card
        show(card, as_json)


@app.command()
def score(
    trace: TracePath,
    predictor: PredictorPath = Path("models/predictor"),
    seed: Annotated[int, typer.Option(help="Of the paper's random fillings and of the intervals.")] = 7,
    as_json: AsJson = False,
) -> None:
    """Score a predictor on a trace: recall by phase and layer, and hit rates under the paper's own protocol."""
    import numpy as np  # noqa: PLC0415

    from moe_beyond.evaluation import published_rows  # noqa: PLC0415
    from moe_beyond.metrics import groups, quality_rows  # noqa: PLC0415
    from moe_beyond.metrics import score as hits_of  # noqa: PLC0415
    from moe_beyond.predictor.runtime import OnnxPredictor  # noqa: PLC0415
    from moe_beyond.simulator.published_protocol import most_probable  # noqa: PLC0415

    with one_line_errors():
        routing, model = store.read_parquet(trace), OnnxPredictor(predictor)
        quality = quality_rows(routing, hits_of(model, routing), RESAMPLES, seed)
        top_k = routing.metadata.top_k
        named_TLK = np.concatenate([most_probable(model.probabilities_TLE(part), top_k) for part in groups(routing)])
        replayed = published_rows(routing, named_TLK, RESAMPLES, seed)
        result = {
            "quality": {f"{row.pop('phase')}/{row.pop('layer')}": row for row in quality.to_dicts()},
            "published_protocol": {f"{row.pop('capacity_experts')} experts": row for row in replayed.to_dicts()},
        }
        show(result, as_json)


def main() -> None:
    """Entry point of the `moe-beyond` command."""
    app()
