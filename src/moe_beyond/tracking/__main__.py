"""Runs a stage of dvc.yaml, then logs it to MLflow from the files that it wrote: `python -m moe_beyond.tracking STAGE`.

A stage script, `stages/<stage>.py`, has the model `Params` of the sections it reads and `main(root, params)`, which
writes files and does not use MLflow.
"""

from __future__ import annotations

import logging
import os
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from moe_beyond.errors import SYSTEM_ERRORS, InputError, line_of
from moe_beyond.masking import mask_output
from moe_beyond.numerics import Numerics, pin
from moe_beyond.settings import Settings, read_params
from moe_beyond.tracking.dvc import RECEIPT, DvcStage, read_stage, restore_outs, write_receipt
from moe_beyond.training.distributed import is_further_process


class _Numerics(Settings):
    numerics: Numerics = "portable"


def run_stage(root: Path, stage: str) -> None:
    """Run a stage, check its outs, write its receipt and log it.

    A stage that fails gets its former outs back from DVC's cache, and is logged as failed. A stage that wrote its outs
    has succeeded even if logging fails. A stage that DVC always runs logs for itself.

    Args:
        root: The project's root.
        stage: Name in dvc.yaml.

    Raises:
        InputError: A parameter or an input is wrong, or the stage did not write one of its outs.
    """
    declared = read_stage(root / "dvc.yaml", stage)
    try:
        # before the script imports numpy and torch, which look once
        pin(os.environ, read_params(root / "params.yaml", _Numerics).numerics)
        path = root / "stages" / f"{stage}.py"
        if not path.exists():
            raise InputError(f"{path}: not found; a stage of dvc.yaml has its script there")
        script = runpy.run_path(str(path), run_name=f"stages.{stage}")
        params, run = read_params(root / "params.yaml", script["Params"]), partial(script["main"], root)
    except BaseException:
        restore_outs(root, stage)
        raise
    if is_further_process():  # of a distributed fit: the first one of them writes and logs
        run(params)
    elif declared.always_changed:
        run(params)
        _require_outs(root, declared)
    else:
        _run_and_log(root, declared, run, params)


def _run_and_log(root: Path, declared: DvcStage, run: Callable[[Settings], None], params: Settings) -> None:
    from moe_beyond.tracking import client, run_record  # noqa: PLC0415 - a further process never imports mlflow

    start_ms = run_record.now_ms()
    try:
        run(params)
        _require_outs(root, declared)
    except BaseException as error:
        restore_outs(root, declared.name)
        try:
            client.log_run(root, run_record.of_failure(root, declared, params, start_ms, error))
        except (InputError, *SYSTEM_ERRORS) as second:  # such as the disk that made the stage fail
            logging.getLogger(__name__).warning("this failed run is not kept for MLflow: %s", line_of(second))
        raise
    ended = run_record.of_stage(root, declared, params, start_ms)
    write_receipt(root, declared.name, ended.key)
    client.log_run(root, ended)


def _require_outs(root: Path, declared: DvcStage) -> None:
    """A receipt vouches for every out: all others must be there first."""
    for out in declared.outs:
        if not (root / out).exists() and Path(out).name != RECEIPT:
            raise InputError(f"{out}: the stage did not write this out of dvc.yaml")


def main() -> None:
    """Run the stage that the command line names; what a user can fix ends in one line and status 1."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # of the processes of a fit, one shows the progress
    logging.getLogger("moe_beyond").setLevel(logging.WARNING if is_further_process() else logging.INFO)
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m moe_beyond.tracking STAGE")
    try:
        run_stage(Path.cwd(), sys.argv[1])
    except (InputError, *SYSTEM_ERRORS) as error:
        print(f"error: {line_of(error)}", file=sys.stderr)  # noqa: T201 - the one line for the user
        raise SystemExit(getattr(error, "status", 1)) from error


if __name__ == "__main__":
    mask_output()
    main()
