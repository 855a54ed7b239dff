"""A predictor directory as a target: any damage must be named, and none may change an answer.

    python -m tests.fuzz.predictors DIRECTORY

trains and exports a small one there.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from moe_beyond.predictor.contents import MANIFEST, Contents, write_manifest
from tests.fuzz.mutations import key_twice, of_bytes, structured
from tests.fuzz.targets import Target
from tests.traces_of_chance import chance_trace


def export(directory):
    """As the tests' own fixtures do."""
    from moe_beyond.network.export import export_predictor  # noqa: PLC0415 - children of a fuzzer load no torch
    from moe_beyond.network.settings import ExportSettings  # noqa: PLC0415
    from moe_beyond.training.fit import fit  # noqa: PLC0415
    from moe_beyond.training.size import Size  # noqa: PLC0415
    from tests.predictor.small import SETTINGS  # noqa: PLC0415

    parts = {"train": chance_trace(20, seed=1, name="train"), "validation": chance_trace(4, seed=2, name="validation")}
    with tempfile.TemporaryDirectory() as scratch:
        fitted = fit(*parts.values(), Size(16, 2, 2), SETTINGS, epochs=1, seed=3, scratch=Path(scratch))
        export_predictor(fitted.checkpoint, directory, parts, ExportSettings(parity_tokens=60, latency_repeats=10))


def answer(directory):
    """What both precisions say of a trace, of a stream, and of time."""
    from moe_beyond.predictor.runtime import OnnxPredictor  # noqa: PLC0415

    trace, found = chance_trace(2, seed=5), []
    for precision in ("fp32", "int8"):
        predictor = OnnxPredictor(directory, precision=precision)
        prompt = trace.select(np.array([0]))
        found += [predictor.probabilities_TLE(prompt), predictor.layer_probabilities_HTLE(prompt)]
        found += [predictor.stream().step("word", None), predictor.charge]
        predictor.layer_step_ms(1)  # a time, another one each time
    return [*found, Contents(directory).read("training_prompts.txt")]


def damaged(files, draw):
    """Bytes of a file, a file in another's place or away, the manifest with a key twice; or all of it signed again."""
    files, name = dict(files), sorted(files)[int(draw.integers(len(files)))]
    if draw.integers(8) == 0:
        other = sorted(files)[int(draw.integers(len(files)))]
        files[name], files[other] = files[other], files[name]
    elif draw.integers(12) == 0:
        del files[name]
    elif draw.integers(8) == 0:
        files[MANIFEST] = key_twice(files[MANIFEST], draw)
    else:
        files[name] = structured(files[name], draw) or of_bytes(files[name], draw)
    if draw.integers(4):
        return "damaged", files
    with tempfile.TemporaryDirectory() as folder:
        for each, data in files.items():
            Path(folder, each).write_bytes(data)
        write_manifest(Path(folder), "1.18")
        return "signed again", {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def target(directory):
    """Of an exported predictor."""
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    return Target(files, answer, mutate=damaged, strict=frozenset({"damaged"}))


if __name__ == "__main__":
    export(Path(sys.argv[1]))
