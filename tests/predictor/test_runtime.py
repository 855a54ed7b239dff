import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest

from moe_beyond.errors import InputError
from moe_beyond.predictor.onnx import parity, torch_logits_TLE
from moe_beyond.predictor.runtime import GRAPH_FILE, OnnxPredictor, sigmoid
from tests.traces_of_chance import chance_trace


def test_export_measures_parity_latency_and_size(exported):
    directory, measured = exported
    assert measured["parity_max_abs_error"] < 1e-4
    assert measured["latency_ms"] > 0
    assert measured["size_bytes"] == (directory / GRAPH_FILE).stat().st_size
    assert [path.name for path in directory.iterdir()] == [GRAPH_FILE]


def test_batch_and_stream_give_torchs_probabilities(exported, fitted, validation_trace):
    predictor = OnnxPredictor(exported[0])
    prompt = validation_trace.select(np.array([3]))
    expected = sigmoid(torch_logits_TLE(fitted.checkpoint, prompt))
    assert np.allclose(predictor.probabilities_TLE(prompt), expected, atol=1e-5)
    stream, previous = predictor.stream(), None
    for t, text in enumerate(prompt.token_texts.decode()):
        assert np.allclose(stream.step(text, previous), expected[t], atol=1e-5)
        previous = prompt.experts_TLK[t]


def test_prompts_do_not_touch_each_other(exported, validation_trace):
    predictor = OnnxPredictor(exported[0])
    together = predictor.probabilities_TLE(validation_trace)
    alone = predictor.probabilities_TLE(validation_trace.select(np.array([4])))
    start, end = validation_trace.prompt_offsets[4:6]
    assert np.allclose(together[start:end], alone, atol=1e-6)


def test_no_answer_depends_on_the_tokens_own_routing(exported, validation_trace):
    predictor = OnnxPredictor(exported[0])
    prompt = validation_trace.select(np.array([0]))
    changed = prompt.experts_TLK.copy()
    changed[-1] = (changed[-1] + 1) % 16
    assert np.array_equal(
        predictor.probabilities_TLE(prompt)[-1], predictor.probabilities_TLE(replace(prompt, experts_TLK=changed))[-1]
    )


def test_a_wrong_graph_is_noticed(exported, fitted, validation_trace, tmp_path):
    model = onnx.load(exported[0] / GRAPH_FILE)
    bias = next(x for x in model.graph.initializer if x.name == "output.bias")
    bias.raw_data = (onnx.numpy_helper.to_array(bias) + 0.01).astype(np.float32).tobytes()
    onnx.save(model, tmp_path / GRAPH_FILE)
    assert parity(fitted.checkpoint, tmp_path, validation_trace, 20) == pytest.approx(0.01, rel=0.01)


def test_files_that_are_no_predictor_are_refused(exported, tmp_path):
    with pytest.raises(InputError, match="run the export stage first"):
        OnnxPredictor(tmp_path)
    (tmp_path / GRAPH_FILE).write_bytes(b"no protobuf")
    with pytest.raises(InputError, match="not an ONNX file"):
        OnnxPredictor(tmp_path)
    model = onnx.load(exported[0] / GRAPH_FILE)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / GRAPH_FILE)
    with pytest.raises(InputError, match="no 'moe_beyond' metadata"):
        OnnxPredictor(tmp_path)


def test_a_trace_of_another_model_is_refused(exported):
    with pytest.raises(InputError, match="made for 3 layers, 16 experts, top-2"):
        OnnxPredictor(exported[0]).probabilities_TLE(chance_trace(2, num_layers=2))


def test_routing_of_the_wrong_shape_or_range_is_refused(exported):
    stream = OnnxPredictor(exported[0]).stream()
    with pytest.raises(InputError, match="expected layers x top-k"):
        stream.step("word", np.zeros((2, 2)))
    with pytest.raises(InputError, match="outside 0 to 15"):
        stream.step("word", np.full((3, 2), 16))


def test_the_runtime_runs_without_torch(exported):
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['lightning'] = None\n"
        "from pathlib import Path\n"
        "from moe_beyond.predictor.runtime import OnnxPredictor\n"
        f"print(OnnxPredictor(Path({str(exported[0])!r})).stream().step('word1', None).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(3, 16)"
