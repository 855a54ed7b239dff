"""Runs the default pipeline with two more seeds and writes how far its figures spread: docs/figures/spread.json.

    python -m scripts.spread

After `make repro`, in clones of the last commit under build/; each takes as long as the first. `make docs` then puts
the spread into the README.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from scripts.other_model import ROOT, run_in_clone

MORE_SEEDS = (8, 9)


def main() -> None:
    """Run and collect."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    folders = {params["seed"]: ROOT}
    for seed in MORE_SEEDS:
        run_in_clone(f"seed-{seed}", params | {"seed": seed})
        folders[seed] = ROOT / "build" / f"seed-{seed}"
    metrics = {seed: headline(folder) for seed, folder in folders.items()}
    path = ROOT / "docs" / "figures" / "spread.json"
    path.write_text(json.dumps({"note": "", "seeds": metrics}, indent=2) + "\n", encoding="utf-8")


def headline(folder: Path) -> dict[str, float]:
    """The values of a run's simulate stage."""
    found = json.loads((folder / "reports/simulate/metrics.json").read_text(encoding="utf-8"))
    return {name: entry["value"] for name, entry in found.items()}


if __name__ == "__main__":
    main()
