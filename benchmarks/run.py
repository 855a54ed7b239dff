"""Runs every benchmark beside it, one after another, and keeps their lines in reports/benchmarks.json.

A benchmark prints a line `NAME VALUE TARGET` for each promise (TARGET as `<=1.1` or `>=3`) and exits 1 if one is
broken.
Times are compared only within one benchmark's own run: as ratios, side by side.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from moe_beyond.files import write_json

ROOT = Path(__file__).parents[1]
LINE = re.compile(r"^(?P<name>\w+) (?P<value>[-+.\de]+) (?P<target>[<>]=[-+.\de]+)$")


def main() -> None:
    """Run them all; exit 1 if any falls short."""
    results, failed = [], []
    for script in sorted(Path(__file__).parent.glob("bench_*.py")):
        done = subprocess.run([sys.executable, script], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, end="", flush=True)
        found = [match for line in done.stdout.splitlines() if (match := LINE.match(line))]
        results += [
            {"benchmark": script.stem, "name": m["name"], "value": float(m["value"]), "target": m["target"]}
            for m in found
        ]
        if done.returncode or not found:
            failed.append(script.name)
    write_json(ROOT / "reports" / "benchmarks.json", results)
    if failed:
        sys.exit(f"error: fell short or broke: {', '.join(failed)}")


if __name__ == "__main__":
    main()
