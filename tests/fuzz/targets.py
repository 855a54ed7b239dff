"""Everything that reads a file of somebody else, with a small valid input, as one table."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import astuple, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_beyond.advisor.conform import read_rows
from moe_beyond.capture.prompts import read_prompts
from moe_beyond.devices import prefill
from moe_beyond.devices.calibrate import calibrate
from moe_beyond.devices.device import dump_device, load_device
from moe_beyond.devices.recordings import read_recording
from moe_beyond.errors import InputError
from moe_beyond.formats import importers
from moe_beyond.formats.count_files import read_counts
from moe_beyond.formats.headers import read_sizes
from moe_beyond.formats.recognise import recognise
from moe_beyond.params import load_params
from moe_beyond.registry.drift import window
from moe_beyond.traces import store
from tests.formats.cases import BESIDE, SOURCES
from tests.formats.count_cases import COUNTS
from tests.formats.engine_cases import CASES, SHAPE
from tests.formats.headers.gguf_files import write as write_gguf
from tests.fuzz.mutations import STRICT, mutated
from tests.traces_of_chance import chance_trace

ROOT = Path(__file__).parents[2]
_ALL = frozenset({*STRICT, "zeros twice", "member twice"})
_NO_ROWS = _ALL - {"row twice"}


@dataclass(frozen=True)
class Target:
    """What reads files.

    Attributes:
        files: A valid input.
        read: Reads the folder, or the archive, that holds them; returns what was read, or raises InputError.
        packed: Whether an archive is read as well.
        mutate: Makes of the files and a generator what was done, and other files.
        strict: Mutations that must be refused or change nothing.
    """

    files: dict[str, bytes]
    read: Callable[[Path], Any]
    packed: bool = False
    mutate: Callable[..., Any] = mutated
    strict: frozenset[str] = _ALL


def digest(value: Any) -> str:
    """Of whatever was read: equal where every number and text is."""
    sha = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        elif is_dataclass(part) and not isinstance(part, type):
            add(astuple(part) if not hasattr(part, "metadata") else list(vars(part).values()))
        elif isinstance(part, list | tuple):
            for each in part:
                add(each)
        elif hasattr(part, "model_dump_json"):
            sha.update(part.model_dump_json().encode())
        elif hasattr(part, "write_csv"):
            sha.update(part.write_csv().encode())
        else:
            sha.update(repr(part).encode())

    add(value)
    return sha.hexdigest()


def _import(name: str, shape: importers.ShapeOverride) -> Callable[[Path], Any]:
    def read(source: Path) -> Any:
        try:
            recognise(source)
        except InputError as error:
            assert len(str(error).splitlines()) == 1
        trace = importers.read(name, source, shape=shape)
        # where it came from is no part of it
        return [
            trace.prompt_offsets,
            trace.num_prefill_P,
            trace.experts_TLK,
            trace.weights_TLK,
            trace.token_ids_T,
            None if trace.token_texts is None else trace.token_texts.decode(),
            trace.predicted_TLK,
        ]

    return read


def _only(read: Callable[[Path], Any], name: str) -> Callable[[Path], Any]:
    return lambda folder: read(folder / name)


def _counts(name: str, file: str) -> Callable[[Path], Any]:
    return lambda folder: read_counts(name, folder / file, SHAPE)


def _made(write: Callable[[Path], Any]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _safetensors() -> dict[str, bytes]:
    fields = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 2}
    fields |= {"hidden_size": 8, "intermediate_size": 16, "vocab_size": 32, "torch_dtype": "bfloat16"}
    header, end = {}, 0
    shapes = {"model.embed_tokens.weight": [32, 8], "lm_head.weight": [32, 8]}
    for layer in range(2):
        stem = f"model.layers.{layer}"
        shapes[f"{stem}.self_attn.q_proj.weight"] = [8, 8]
        for expert in range(8):
            named = f"{stem}.block_sparse_moe.experts.{expert}"
            shapes |= {f"{named}.w1.weight": [16, 8], f"{named}.w2.weight": [8, 16], f"{named}.w3.weight": [16, 8]}
    for name, shape in shapes.items():
        size = 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return {
        "model.safetensors": len(text).to_bytes(8, "little") + text,
        "config.json": json.dumps(fields).encode(),
    }


def _window(folder: Path) -> None:
    trace = chance_trace(3, num_experts=8)
    window.write_window(folder, window.Window.of(trace), window.Measures("counts", 0.5, 0.5, 0.1, 4))


def _table(*rows: object) -> bytes:
    return "\n".join(map(str, rows)).encode() + b"\n"


_READS = [f"{n},{read},{60 + read / 2e6:.3f},0" for n in range(40) for read in [10**8 + 7919_7919 * n % 10**9]]
_RUNS = [f"{0.3 + 0.1 * n:.1f},{2 + n},1.5," for n in range(5)]
_PROMPTS = [{"prompt": f"What is {n}?", "id": f"p{n}", "domain": "d"} for n in range(4)]
_META = chance_trace(2, num_experts=8).metadata
TARGETS = {
    **{
        f"import {name}": Target(files, _import(name, importers.ShapeOverride()), True)
        for name, files in SOURCES.items()
    },
    **{f"import {name}": Target(case.files, _import(name, case.shape), True) for name, case in CASES.items()},
    **{
        # a route log whose requests share an id may say the same of two tokens
        f"counts {name}": Target(
            files, _counts(name, next(iter(files))), strict=_NO_ROWS if name == "vllm-routes" else _ALL
        )
        for name, files in COUNTS.items()
    },
    "config.json": Target(
        {"x.csv": CASES["moe-trace-a"].files["x.csv"]} | BESIDE,
        _import("moe-trace-a", importers.ShapeOverride()),
        packed=True,
    ),
    "header gguf": Target(
        _made(lambda folder: write_gguf(folder / "m.gguf", "deepseek2")), _only(read_sizes, "m.gguf")
    ),
    "header safetensors": Target(_safetensors(), read_sizes),
    "trace parquet": Target(
        _made(lambda folder: store.write_parquet(chance_trace(4, num_experts=8), folder / "t.parquet")),
        _only(store.read_parquet, "t.parquet"),
    ),
    "device": Target(
        {"d.yaml": dump_device(load_device("phone_oneplus_15r")).encode()},
        lambda folder: load_device(str(folder / "d.yaml")),
        strict=_NO_ROWS,
    ),
    "params": Target({"params.yaml": (ROOT / "params.yaml").read_bytes()}, _only(load_params, "params.yaml")),
    "recording of tokens": Target(
        {"r.csv": _table("# io_threads=4", "step,read_bytes,wall_ms,majflt", *_READS)},
        lambda folder: [calibrate(folder / "r.csv", 10**9, "x").device, read_recording(folder / "r.csv")],
        strict=_NO_ROWS,
    ),
    "recording of runs": Target(
        {"r.csv": _table("hit_rate,tok_s,expert_mib,contaminated", *_RUNS)},
        _only(read_recording, "r.csv"),
        strict=_NO_ROWS,
    ),
    "recording of prompts": Target(
        {"p.csv": _table("prompt_tokens,prefill_ms,misses", "10,100,4", "20,210,5", "40,400,9")},
        _only(prefill.read_prompts, "p.csv"),
        strict=_NO_ROWS,
    ),
    "hits of an engine": Target(
        {"h.csv": _table("step,layer,hits", *(f"{n},{_META.layer_numbers[0]},{n % 3}" for n in range(9)))},
        lambda folder: read_rows(folder / "h.csv", _META),
    ),
    "drift counts": Target(
        {"c.csv": _table("layer,expert,count", *(f"{n // 8 + 1},{n % 8},{n}" for n in range(16)))},
        # its model is called by the path
        lambda folder: replace(window.read_counts(folder / "c.csv"), model_id=""),
    ),
    "drift window": Target(_made(_window), window.read_window),
    "prompts jsonl": Target(
        {"p.jsonl": _table(*map(json.dumps, _PROMPTS))}, _only(read_prompts, "p.jsonl"), strict=_NO_ROWS
    ),
    "prompts json": Target(
        {"p.json": json.dumps(_PROMPTS, indent=1).encode()}, _only(read_prompts, "p.json"), strict=_NO_ROWS
    ),
    "prompts csv": Target(
        {"p.csv": _table("prompt,id,domain", *(f"What is {n}?,p{n},d" for n in range(4)))},
        _only(read_prompts, "p.csv"),
        strict=_NO_ROWS,
    ),
    "prompts parquet": Target(
        _made(lambda folder: pq.write_table(pa.Table.from_pylist(_PROMPTS), folder / "p.parquet")),
        _only(read_prompts, "p.parquet"),
        strict=_NO_ROWS,
    ),
    "prompts txt": Target(
        {"p.txt": _table("one", "two words", "three")}, _only(read_prompts, "p.txt"), strict=frozenset()
    ),
}
