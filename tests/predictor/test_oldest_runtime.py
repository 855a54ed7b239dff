"""The exported predictor runs where the README says: in the oldest onnxruntime, with numpy and pydantic beside it."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from moe_beyond.predictor.graph_file import STEPS, graph_file
from moe_beyond.predictor.runtime import OnnxPredictor

SOURCE = Path(__file__).parents[2] / "src"
PROGRAM = """
import json, sys
from pathlib import Path
from moe_beyond.predictor.runtime import OnnxPredictor
found = {}
for precision in ("fp32", "int8"):
    stream = OnnxPredictor(Path(sys.argv[1]), precision=precision).stream()
    found[precision] = [stream.step("word1", None).tolist(), stream.layer_step(0, [0, 1]).tolist()]
needless = {"torch", "polars", "pyarrow", "scipy", "datasketch", "yaml", "onnx", "mlflow", "numba"} & set(sys.modules)
print(json.dumps({"found": found, "needless": sorted(needless)}))
"""


def test_the_default_export_is_of_the_ir_and_opset_that_the_oldest_knows(exported):
    """onnxruntime 1.18 knows IR 10 and opset 21, 1.17 IR 9 and opset 20 (its table of ONNX versions)."""
    for step in STEPS:
        for precision in ("fp32", "int8"):
            model = onnx.load(exported[0] / graph_file(step, precision))
            assert (model.ir_version, [entry.domain for entry in model.opset_import]) == (10, [""])
            assert model.opset_import[0].version <= 21


def test_it_gives_there_what_it_gives_here_and_loads_nothing_else(exported):
    python = os.environ.get("OLDEST_PYTHON")
    if python is None:
        pytest.skip("OLDEST_PYTHON is not set: `make test-oldest` makes an environment with the oldest onnxruntime")
    command = [python, "-c", PROGRAM, str(exported[0])]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    assert there["needless"] == []
    for precision in ("fp32", "int8"):
        stream = OnnxPredictor(exported[0], precision=precision).stream()
        here = stream.step("word1", None), stream.layer_step(0, [0, 1])
        for mine, theirs in zip(here, there["found"][precision], strict=True):
            assert np.allclose(mine, theirs, atol=1e-4 if precision == "fp32" else 0.02)
