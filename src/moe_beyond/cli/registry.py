"""Commands on runs and registered predictors in MLflow: compare, drift, rollback, resend, retrain-report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moe_beyond.cli.common import AsJson, app, named, show

Name = Annotated[str | None, typer.Option(help="Registered model; by default the only one of this project.")]
DRIFTED = 3
"""Exit status of `drift` when a limit is exceeded: 1 is a mistake of the caller, 2 one of the command line."""


@app.command()
def compare(
    states: Annotated[
        list[str],
        typer.Argument(
            help="MLflow run ids, champion, NAME@champion, NAME@VERSION, git revisions, experiments, workspace."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Set states of the pipeline side by side: parameters that differ, headline numbers."""
    from moe_beyond.errors import InputError  # noqa: PLC0415
    from moe_beyond.registry.states import find_states  # noqa: PLC0415
    from moe_beyond.reporting.compare import document, print_tables  # noqa: PLC0415

    if len(set(states)) < 2:
        raise InputError(f"compare: found {len(set(states))} state, expected two or more different ones")
    found = find_states(Path.cwd(), list(dict.fromkeys(states)), _defaults())
    if as_json:
        show(document(found), as_json)
    else:
        print_tables(found)


@app.command()
def drift(
    trace: Annotated[Path, typer.Argument(help="New traces, or a CSV of columns layer,expert,count.", callback=named)],
    against: Annotated[
        str, typer.Option(help="Traces, a predictor's bundle, champion, NAME@champion or NAME@VERSION.")
    ] = "champion",
    log: Annotated[bool, typer.Option(help="Log a run `drift` with its metrics to MLflow.")] = True,
    as_json: AsJson = False,
) -> None:
    """Compare new traces with those that a predictor was trained on; exit status 3 where routing has drifted."""
    from moe_beyond.params import load_params  # noqa: PLC0415
    from moe_beyond.registry.drift.check import check_drift  # noqa: PLC0415

    root = Path.cwd()
    params = load_params(root / "params.yaml")
    simulate = params.simulate.of_source(params.traces.source)
    report = check_drift(root, trace, against, params.publish, simulate, seed=params.seed, log=log)
    show(report.document(), as_json)
    if report.drifted:
        raise typer.Exit(DRIFTED)


@app.command()
def rollback(
    name: Name = None,
    to: Annotated[str | None, typer.Option(help="Version to make the champion; by default the one before.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make the champion before this one the champion again. Clients that load NAME@champion get it at once."""
    from moe_beyond.registry.registry import Registry  # noqa: PLC0415
    from moe_beyond.registry.states import only_model  # noqa: PLC0415
    from moe_beyond.tracking.client import connected  # noqa: PLC0415

    with connected(Path.cwd()) as connection:
        registry = Registry(connection.client, name or only_model(connection.client))
        left, now = registry.roll_back(to)
    show({"registered_model": registry.name, "left": left, "champion": now}, as_json)


@app.command()
def resend(
    root: Annotated[Path, typer.Option(help="The project's root.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Log to MLflow what it refused or missed when a stage ended; exits with 1 where something is still missing."""
    from moe_beyond.tracking.client import send  # noqa: PLC0415

    sent = send(root)
    missing = sent.sentences()
    if as_json:
        show({"logged": sent.logged, "missing": missing}, as_json)
    else:
        typer.echo("\n".join([*(f"logged {run}" for run in sent.logged), *(missing or ["nothing is missing"])]))
    if missing:
        raise typer.Exit(1)


@app.command("retrain-report")
def retrain_report(
    base: Annotated[str, typer.Option(help="Git revision to compare the numbers with.")] = "main",
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = Path("reports/retrain.md"),
) -> None:
    """Write the report of a retraining: the gate's verdict, what changed against a revision, and the curves."""
    from moe_beyond.reporting.retraining import write_report  # noqa: PLC0415

    write_report(Path.cwd(), base, out, _defaults())


def _defaults() -> dict[str, Any]:
    """Every parameter's value where params.yaml does not set it, flat."""
    from moe_beyond.params import Params  # noqa: PLC0415
    from moe_beyond.settings import flatten  # noqa: PLC0415

    return flatten(Params().model_dump(by_alias=True, mode="json"))
