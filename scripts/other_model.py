"""Runs the pipeline on another model, in a clone of the last commit under build/.

    python scripts/other_model.py deepseek --traces ../shared/traces
    python scripts/other_model.py larger

Beside the default, not over it: with DVC's cache and MLflow's runs in common. Parameters are params.yaml, for published
traces of real models params/real-models.yaml, then params/<name>.yaml; traces are folders or .tar.xz archives in the
folder of traces. `larger` needs none: it trains its own model, as the default does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from moe_beyond.tracking.database import uri_of

ROOT = Path(__file__).resolve().parents[1]
BFLOAT16 = ("avx512_bf16", "amx_bf16")
"""Processor flags with which a fit in bfloat16 is several times faster, at no loss of recall that was measured."""
OTHER_CARDS = {
    "moe-beyond-csv": "puffin",
    "gpt-oss-fingerprint": "gpt-oss-20b",
    "bigmoe-route": "bigmoe-on-edge/qwen.route.csv.gz",
}
"""Models whose suitability cards stand beside this one's, where they are there: format and place."""


def main() -> None:
    """Make or update the clone, write its parameters, run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["deepseek", "gpt-oss", "larger"])
    parser.add_argument("--traces", type=Path, default=ROOT.parent / "shared" / "traces")
    arguments = parser.parse_args()
    try:
        params = parameters(arguments.name, arguments.traces.resolve())
    except FileNotFoundError as error:
        sys.exit(f"error: TRACES={arguments.traces}: holds no {error}; see 'Published traces' in README.md")
    run_in_clone(arguments.name, params)


def run_in_clone(name: str, params: dict[str, Any]) -> None:
    """Run the pipeline of the last commit with these parameters in build/<name>."""
    clone = ROOT / "build" / name
    if not clone.exists():
        run("git", "clone", "-q", str(ROOT), str(clone), where=ROOT)
    # by its path: after a move, and in a copy, `origin` is where this checkout was
    run("git", "fetch", "-q", str(ROOT), "HEAD", where=clone)
    run("git", "checkout", "-qf", "FETCH_HEAD", where=clone)
    run("dvc", "cache", "dir", "--local", "-q", str(ROOT / ".dvc" / "cache"), where=clone)
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    print(f"The report will be build/{name}/reports/index.html", flush=True)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or uri_of(ROOT / "mlflow.db")
    run("dvc", "repro", where=clone, PYTHONPATH="src", MLFLOW_TRACKING_URI=uri)


def parameters(name: str, traces: Path) -> dict[str, Any]:
    """The parameters of a run.

    Raises:
        FileNotFoundError: The folder lacks the model's traces; holds their name.
    """
    params: dict[str, Any] = {}
    overlays = ("larger",) if name == "larger" else ("real-models", name)
    for path in (ROOT / "params.yaml", *(ROOT / f"params/{overlay}.yaml" for overlay in overlays)):
        params = merged(params, yaml.safe_load(path.read_text(encoding="utf-8")))
    if name == "larger":
        return params
    source = params["traces"]["import"]
    for part in ("train", "held_out"):
        if source[part] is not None:
            source[part] = str(found(traces, source[part]))
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    params["train"]["precision"] = "bf16-mixed" if any(flag in flags for flag in BFLOAT16) else "32-true"
    params["assess"]["others"] = [
        {"format": format_, "path": str(found(traces, place))}
        for format_, place in OTHER_CARDS.items()
        if (traces / place).exists() or (traces / f"{place}.tar.xz").exists()
    ]
    if (ROOT / "data/traces").exists():
        params["assess"]["others"].append({"format": "parquet", "path": str(ROOT / "data/traces")})
    return params


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with those of another file over them."""
    both = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if nested else value
    return both


def found(traces: Path, name: str) -> Path:
    """The archive or folder of that name."""
    for path in (traces / f"{name}.tar.xz", traces / name):
        if path.exists():
            return path
    raise FileNotFoundError(name)


def run(*command: str, where: Path, **environment: str) -> None:
    """Run a command; its failure is ours."""
    done = subprocess.run(command, cwd=where, env={**os.environ, **environment}, check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
