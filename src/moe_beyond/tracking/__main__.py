"""Runs a stage of dvc.yaml, then logs it to MLflow from the files that it wrote: `python -m moe_beyond.tracking STAGE`.

A stage script, `stages/<stage>.py`, has the model `Params` of the sections it reads and `main(root, params)`, which
writes files and knows nothing of MLflow.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path
from types import ModuleType

from moe_beyond.errors import InputError
from moe_beyond.numerics import Numerics, pin
from moe_beyond.settings import Settings, read_params
from moe_beyond.tracking.dvc import RECEIPT, DvcStage, read_stage, restore_outs, write_receipt
from moe_beyond.training.distributed import is_further_process


class _Numerics(Settings):
    numerics: Numerics = "portable"


def run_stage(root: Path, stage: str) -> None:
    """Run a stage, check its outs, write its receipt and log it.

    A stage that fails gets its former outs back from DVC's cache, and is logged as failed. Whatever becomes of the
    logging, a stage that wrote its outs has succeeded. A stage that DVC always runs logs for itself.

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
        script = load_script(root / "stages" / f"{stage}.py")
        params = read_params(root / "params.yaml", script.Params)
    except BaseException:
        restore_outs(root, stage)
        raise
    if is_further_process():  # of a distributed fit: the first one of them writes and logs
        script.main(root, params)
    elif declared.always_changed:
        script.main(root, params)
        _require_outs(root, declared)
    else:
        _run_and_log(root, declared, script, params)


def _run_and_log(root: Path, declared: DvcStage, script: ModuleType, params: Settings) -> None:
    from moe_beyond.tracking import client, record  # noqa: PLC0415 - a further process never imports mlflow

    start_ms = record.now_ms()
    try:
        script.main(root, params)
        _require_outs(root, declared)
    except BaseException as error:
        restore_outs(root, declared.name)
        client.log_run(root, record.of_failure(root, declared, params, start_ms, error))
        raise
    ended = record.of_stage(root, declared, params, start_ms)
    write_receipt(root, declared.name, ended.key)
    client.log_run(root, ended)


def load_script(path: Path) -> ModuleType:
    """Load a stage's script as the module `stages.<stage>`.

    Raises:
        InputError: There is none.
    """
    if not path.exists():
        raise InputError(f"{path}: not found; a stage of dvc.yaml has its script there")
    name = f"stages.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AssertionError(f"{path}: Python cannot load this file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _require_outs(root: Path, declared: DvcStage) -> None:
    """A receipt vouches for every out: all others must be there first."""
    for out in declared.outs:
        if not (root / out).exists() and Path(out).name != RECEIPT:
            raise InputError(f"{out}: the stage did not write this out of dvc.yaml")


def main() -> None:
    """Run the stage that the command line names; what a user can fix ends in one line and status 1."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # of the processes of a fit, one says how it goes on
    logging.getLogger("moe_beyond").setLevel(logging.WARNING if is_further_process() else logging.INFO)
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m moe_beyond.tracking STAGE")
    try:
        run_stage(Path.cwd(), sys.argv[1])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the one line that a person reads
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
