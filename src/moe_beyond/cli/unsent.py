"""Commands on what MLflow has not got: resend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_beyond.cli.common import AsJson, app, show


@app.command()
def resend(
    root: Annotated[Path, typer.Option(help="The project's root.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Send what a stage could not log because MLflow was away; exits with 1 while something still waits."""
    from moe_beyond.tracking.connection import resend as send  # noqa: PLC0415 - mlflow takes a second to import

    left = send(root)
    show({"records still waiting": left or "none"}, as_json)
    if any(left.values()):
        raise typer.Exit(1)
