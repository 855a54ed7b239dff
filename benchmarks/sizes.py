"""Time and peak memory by the size of model and trace. Prints a row a work, and a line `NAME VALUE TARGET` a promise.

    python benchmarks/sizes.py                  # growth alone: what four times the tokens take, a few minutes
    python benchmarks/sizes.py --shapes         # stages of the pipeline on three models' shapes, an hour
    python benchmarks/sizes.py --choices 1e9    # import, replay and assess of so many expert choices, an hour

Traces are drawn from a seed. Each work is a process of its own; its memory is the largest resident set of it and of the
processes that it started. `--out docs/figures/sizes.csv` keeps each row as soon as it is measured, in the place of an
earlier one of the same work; `make docs` makes the table of docs/beyond-one-machine.md of it. Exits 1 if a promise is
broken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from drawn_traces import SHAPES, Shape, drawn_prompts  # type: ignore[import-not-found] # it lies beside this script

from moe_beyond.files import replacing
from moe_beyond.traces.columns import VARIABLE
from moe_beyond.traces.schema import RoutedPrompt

ROOT = Path(__file__).parents[1]
STAGES = ("reference", "extract", "assess", "split", "tune", "train", "export", "simulate", "verify", "report")
PARAMS: dict[str, Any] = {
    "seed": 7,
    "tune": {
        "trials": 1,
        "epochs": 1,
        "space": {"width": [32], "depth": [1], "heads": [2], "train": {"window": [64]}},
    },
    "train": {"epochs": 1},
    "simulate": {"capacities": [0.1, 0.25], "devices": ["laptop_nvme"], "bootstrap_samples": 100},
}
_STAGE = """
import runpy, sys
from pathlib import Path
from moe_beyond.settings import read_params
script = runpy.run_path(sys.argv[1], run_name="stages.sizes")
script["main"](Path.cwd(), read_params(Path("params.yaml"), script["Params"]))
"""
_COMMAND = "from moe_beyond.cli import main; main()"
GROWTH_CHOICES, GROWTH_MIB = 8_000_000, 32
LONG_WORKS = ("import", "replay lru", "assess")  # Belady's bound searches its residents at each eviction
MEMORY_GIB = {"shapes": 12.0, "choices": 4.0}


@dataclass(frozen=True)
class Row:
    """What a work took."""

    shape: str
    choices: int
    work: str
    seconds: float
    peak_gib: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", action="store_true")
    parser.add_argument("--shape", choices=[shape.name for shape in SHAPES], help="this one alone")
    parser.add_argument("--tokens", type=int, default=6_000, help="of each shape's trace")
    parser.add_argument("--choices", type=float)
    parser.add_argument("--folder", type=Path, help="where traces lie meanwhile; by default that for temporary files")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    chosen = [shape for shape in SHAPES if arguments.shape in (None, shape.name)]
    rows: list[Row] = []
    kept = True
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        if arguments.shapes:
            works: Iterable[Row] = chain.from_iterable(
                pipeline(shape, arguments.tokens, folder / shape.name) for shape in chosen
            )
        elif arguments.choices:
            works = commands(chosen[0], int(arguments.choices), folder, LONG_WORKS)
        else:
            works = growth(chosen[0], folder)
        for row in works:
            rows.append(row)
            if arguments.out:
                keep(row, arguments.out)
            print(
                f"| {row.shape} | {row.choices:,} | {row.work} | {row.seconds:.1f} s | {row.peak_gib:.2f} GiB |",
                flush=True,
            )
    if arguments.shapes or arguments.choices:
        limit = MEMORY_GIB["shapes" if arguments.shapes else "choices"]
        promises = [("peak_gib", max(row.peak_gib for row in rows), limit)]
    else:
        promises = [
            (f"{a.work.replace(' ', '_')}_{what}_growth", getattr(b, field) / getattr(a, field), most)
            for a, b in zip(rows[: len(rows) // 2], rows[len(rows) // 2 :], strict=True)
            for what, field, most in (("memory", "peak_gib", 1.5), ("time", "seconds", 5.0))
        ]
    for promise, value, most in promises:
        print(f"{promise} {value:.4g} <={most:.4g}")
        kept &= value <= most
    sys.exit(not kept)


def keep(row: Row, path: Path) -> None:
    """Put a row into a CSV, after those of other works."""
    table, same = pl.DataFrame([asdict(row) | {"machine": machine()}]), ["shape", "choices", "work"]
    if path.exists():
        table = pl.concat([pl.read_csv(path, glob=False).join(table, on=same, how="anti"), table])
    with replacing(path) as temporary:
        table.write_csv(temporary, float_precision=2)


def machine() -> str:
    """Processor, the cores of it that may be used, and memory."""
    usable, memory = len(os.sched_getaffinity(0)), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    named = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return f"{named[1] if named else platform.machine()}, {usable} of {os.cpu_count()} cores, {memory / 2**30:.0f} GiB"


def growth(shape: Shape, folder: Path) -> Iterator[Row]:
    """The commands on a trace and on one four times as long, with little memory."""
    os.environ[VARIABLE] = str(GROWTH_MIB)
    works = ("import", "replay lru", "replay belady")  # the curves of an assessment grow up to `max_curve_tokens`
    list(commands(shape, 100_000, folder / "compiles", works))
    for times in (1, 4):
        yield from commands(shape, times * GROWTH_CHOICES, folder / str(times), works)


def commands(shape: Shape, choices: int, folder: Path, chosen: Sequence[str] = ()) -> Iterator[Row]:
    """Import of requests as vLLM returns them, replays by a policy and by a bound, the assessment."""
    source, trace = folder / "requests", folder / "trace.parquet"
    write_requests(shape, drawn_prompts(shape, choices // shape.activations, prompt_tokens=2048), source)
    capacity = str(shape.num_layers * shape.num_experts // 16)
    works = {
        "import": ["import", "vllm-npz", str(source), str(trace)],
        "replay lru": ["replay", str(trace), "--policy", "lru", "--capacity", capacity],
        "assess": ["assess", str(trace)],
        "replay belady": ["replay", str(trace), "--policy", "belady", "--capacity", capacity],
    }
    for work, words in works.items():
        if chosen and work not in chosen:
            continue
        yield Row(shape.name, choices, work, *timed([sys.executable, "-c", _COMMAND, *words], folder))


def write_requests(shape: Shape, prompts: Iterable[RoutedPrompt], source: Path) -> None:
    """Requests as vLLM returns them, beside the model's config.json."""
    source.mkdir(parents=True)
    config = {
        "model_type": "qwen3_moe",
        "num_hidden_layers": shape.num_layers,
        "num_experts": shape.num_experts,
        "num_experts_per_tok": shape.top_k,
        "hidden_size": 2048,
        "moe_intermediate_size": 768,
        "torch_dtype": "bfloat16",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for number, prompt in enumerate(prompts):
        ids = prompt.token_ids_T
        assert ids is not None
        np.savez(
            source / f"{number}.npz",
            routed_experts=prompt.experts_TLK,
            prompt_token_ids=ids[: prompt.num_prefill],
            token_ids=np.append(ids[prompt.num_prefill :], 0),
        )


def pipeline(shape: Shape, tokens: int, root: Path) -> Iterator[Row]:
    """Every stage on requests of so many tokens, a seventh of them of a held-out domain."""
    folders = {"train": tokens - tokens // 7, "held_out": tokens // 7}
    for seed, (folder, part) in enumerate(folders.items(), 1):
        write_requests(shape, drawn_prompts(shape, part, seed=seed), root / folder)
    source = {"source": "import", "import": {"format": "vllm-npz"} | {folder: folder for folder in folders}}
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"traces": source}), encoding="utf-8")
    for stage in STAGES:
        command = [sys.executable, "-c", _STAGE, str(ROOT / "stages" / f"{stage}.py")]
        yield Row(shape.name, tokens * shape.activations, stage, *timed(command, root))


def timed(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds and GiB of a process; SystemExit with its last words if it fails."""
    started = time.perf_counter()
    with (folder / "output").open("w+b") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            output.seek(0)
            raise SystemExit(f"{' '.join(command[2:])[-200:]}: {output.read()[-2000:].decode(errors='replace')}")
    return time.perf_counter() - started, used.ru_maxrss / 2**20


if __name__ == "__main__":
    main()
