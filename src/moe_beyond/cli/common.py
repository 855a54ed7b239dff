"""What all commands share: the application, how results are shown, and how errors end."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand
from typer.exceptions import TyperException

from moe_beyond.errors import SYSTEM_ERRORS, InputError, line_of, shortened
from moe_beyond.files import begins_with, check_output

if TYPE_CHECKING:
    import polars as pl

    from moe_beyond.formats.counts import ExpertCounts
    from moe_beyond.traces.schema import Trace


def named(path: Path) -> Path:
    """`.`, `..` and the like as a path that has a name: messages and data sets are called by it."""
    return path if path.name not in ("", "..") else path.resolve()


_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Command(TyperCommand):
    """A command that ends in one line for whatever a user can mend, and with `--json` in one document, too."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        as_json = "--json" in args  # parsing empties the list
        try:
            return super().make_context(info_name, args, parent, **extra)
        except TyperException as error:
            error.message = shortened(error.message)
            if as_json:
                _show_error(error.format_message(), error.exit_code)
            raise

    def invoke(self, ctx: Any) -> Any:
        try:
            for name, value in ctx.params.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise InputError(f"--{name.replace('_', '-')}: {value}; give a number")
            return super().invoke(ctx)
        except BrokenPipeError:  # who reads has read enough
            raise
        except (InputError, *SYSTEM_ERRORS) as error:
            status, message = getattr(error, "status", 1), line_of(error)
            print(f"error: {message}", file=sys.stderr)  # noqa: T201 - the one line that a person reads
            if ctx.params.get("as_json"):
                _show_error(message, status)
            raise typer.Exit(status) from error


class App(typer.Typer):
    """Commands that end in one line for whatever a user can mend."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[_Function], _Function]:
        """As typer's, for `_Command`."""
        return super().command(name, **{"cls": _Command} | options)


def _show_error(message: str, status: int) -> None:
    print(json.dumps({"error": message, "status": status}, indent=2))  # noqa: T201 - the command's output


app = App(
    help="Which experts of a Mixture-of-Experts model come next, and what is that worth?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
TracePath = Annotated[Path, typer.Argument(help="A Parquet file, a folder of them, or a working trace", callback=named)]
AllowTrainingPrompts = Annotated[
    bool,
    typer.Option("--allow-training-prompts", help="Go on though the predictor's training data holds these prompts."),
]
Beside = Annotated[
    list[str] | None,
    typer.Option(help="Models to compare with: `known`, the package's, or a folder of `export hub`; may be repeated."),
]
NumExperts = Annotated[int | None, typer.Option(help="Experts of a layer, where nothing else says it.", min=2)]
TopK = Annotated[int | None, typer.Option(help="Experts per token, where nothing else says it.", min=1)]
CountFormat = Annotated[
    str | None,
    typer.Option("--counts", help="The file holds counts, no trace: their format (imatrix, coli-usage, ...), or auto."),
]
RESAMPLES = 1000
_LONG = 10


def check_device_output(out: Path, *inputs: Path) -> None:
    """Raise InputError unless a device file may be written there."""
    from moe_beyond.devices.device import WRITTEN  # noqa: PLC0415

    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"{out}: a device file ends in .yaml")
    check_output(out, inputs=inputs, ours=begins_with(WRITTEN.encode()))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """The errors of a command end in `_Command`."""
    yield


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a document: as JSON, or as a table of its leaves and its `notes`, a line each."""
    if as_json:
        print(json.dumps(_finite(result), indent=2, allow_nan=False))  # noqa: T201 - the command's output
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Column, Table  # noqa: PLC0415

    from moe_beyond.settings import flatten  # noqa: PLC0415

    table = Table(Column(overflow="fold"), Column(overflow="fold"), show_header=False, box=None)
    for key, value in flatten({key: value for key, value in result.items() if key != "notes"}).items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        if isinstance(value, list) and len(value) > _LONG:
            shown = f"{len(value)} values; --json lists them"
        table.add_row(key, shown)
    Console().print(table)
    for note in result.get("notes", []):
        Console().print(f"- {note}", highlight=False, soft_wrap=True)


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_trace(path: Path) -> Trace:
    """Read a trace in either of its forms: Parquet, or the working form that a split lies in.

    Raises:
        InputError: There is none, or it is damaged.
    """
    from moe_beyond.traces import store  # noqa: PLC0415

    _refuse_other_formats(path)
    return store.open_working(path) if store.has_working(path) else store.read_parquet(path)


def _refuse_other_formats(path: Path) -> None:
    """Raise InputError for a file of an engine: counts, which have no order, or a trace that is not imported."""
    if not path.is_file() or path.suffix == ".parquet":
        return
    from moe_beyond.formats.recognise import recognise  # noqa: PLC0415

    try:
        kind, found, reason = recognise(path)
    except InputError:
        return  # no known format: the reader of traces says what it is not
    if kind == "counts":
        raise InputError(
            f"{path}: {found}: {reason}; counts, without the order of the tokens that this needs: only "
            f"`assess` and `export placement` take them, with --counts {found}"
        )
    raise InputError(f"{path}: {found}: {reason}; import it first: moe-beyond import {found} {path} trace.parquet")


def read_counts_of(
    path: Path, format_: str, num_experts: int | None, top_k: int | None, expert_size: str | None = None
) -> ExpertCounts:
    """Counts of a file, of this format or of the one that is recognised and named on stderr.

    Raises:
        InputError: The file is a trace, or no counts of that format.
    """
    from moe_beyond.formats.count_files import COUNT_FORMATS, read_counts  # noqa: PLC0415
    from moe_beyond.formats.importers import ShapeOverride  # noqa: PLC0415
    from moe_beyond.formats.recognise import recognise  # noqa: PLC0415

    if format_ == "auto":
        _, format_, reason = recognise(path)
        if format_ not in COUNT_FORMATS:
            raise InputError(f"{path}: {format_}: {reason}; a trace, no counts: import it")
        print(f"{path}: read as {format_}: {reason}", file=sys.stderr)  # noqa: T201 - what was recognised, for a person
    said = ShapeOverride(num_experts=num_experts, top_k=top_k, expert_size=expert_size)
    return read_counts(format_, path, said)


def known_tables_of(beside: list[str]) -> list[tuple[pl.DataFrame, pl.DataFrame]]:
    """Tables of curves and cards of the models that `--beside` names.

    Raises:
        InputError: A folder holds none.
    """
    from moe_beyond.assess.known import known_tables  # noqa: PLC0415

    return [known_tables(None if name == "known" else Path(name)) for name in beside]
