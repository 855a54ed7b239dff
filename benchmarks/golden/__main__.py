"""Checks every published figure: a line `NAME VALUE EXPECTED`, and reports/golden.json; exits 1 if one fails.

    python -m benchmarks.golden [TRACES]
    python -m benchmarks.golden --publish-device-errors [TRACES]     # rewrite the table of modelled times' errors
    python -m benchmarks.golden --publish-known-models [TRACES]      # rewrite hit curves and cards of recorded models
    python -m benchmarks.golden --publish-pinning [TRACES]           # rewrite the table of pinning against LRU

A known shortfall is printed with its reason and does not fail, unless the figure has come to agree: then the reason is
out of date.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.golden.checks import FAMILIES
from benchmarks.golden.device_errors import device_errors
from benchmarks.golden.known_models import known_model_tables
from benchmarks.golden.pinning import pinning
from benchmarks.golden.recordings import TRACES
from moe_beyond.files import write_json

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Run every family."""
    parser = argparse.ArgumentParser()
    parser.add_argument("traces", nargs="?", type=Path, default=TRACES, help="folder of published traces")
    parser.add_argument("--publish-device-errors", action="store_true", help="rewrite the table that is checked")
    parser.add_argument("--publish-known-models", action="store_true", help="rewrite the tables that are checked")
    parser.add_argument("--publish-pinning", action="store_true", help="rewrite the table of pinning that is checked")
    arguments = parser.parse_args()
    traces = arguments.traces
    if not traces.is_dir():
        sys.exit(f"error: {traces}: no folder of published traces; see 'Published traces' in README.md")
    if not (traces.parent / "recordings").is_dir():
        sys.exit(f"error: {traces.parent / 'recordings'}: no folder of recordings; see docs/devices.md")
    if arguments.publish_device_errors:
        device_errors(traces.parent / "recordings").write_csv(ROOT / "src" / "moe_beyond" / "devices" / "errors.csv")
        return
    if arguments.publish_known_models:
        for name, table in known_model_tables(traces).items():
            table.write_csv(ROOT / "src" / "moe_beyond" / "assess" / f"{name.removesuffix('s')}s.csv")
        return
    if arguments.publish_pinning:
        pinning(traces).write_csv(ROOT / "src" / "moe_beyond" / "advisor" / "pinning.csv")
        return
    results, failed = [], []
    for family, checks in FAMILIES.items():
        for check in checks(traces):
            print(check, flush=True)
            results.append({"family": family, **asdict(check), "agrees": check.agrees})
            if check.fails:
                failed.append(check.name)
    write_json(ROOT / "reports" / "golden.json", results)
    shortfalls = sum(bool(result["shortfall"]) for result in results)
    print(f"{len(results)} figures, {len(failed)} fail, {shortfalls} known shortfalls")
    if failed:
        sys.exit(f"error: {', '.join(failed)}")


if __name__ == "__main__":
    main()
