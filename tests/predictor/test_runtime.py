import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from moe_beyond.data.features import token_features
from moe_beyond.network.onnx import describe, parity, require_parity, torch_logits
from moe_beyond.network.settings import ExportSettings
from moe_beyond.predictor import latency
from moe_beyond.predictor.base import sigmoid
from moe_beyond.predictor.contents import MANIFEST, write_manifest
from moe_beyond.predictor.graph_file import LEAST_ONNXRUNTIME, METADATA_KEY, STEPS, GraphFile, graph_file
from moe_beyond.predictor.runtime import TRAINING_PROMPTS, OnnxPredictor
from tests.traces.refusals import refused
from tests.traces_of_chance import chance_trace

FILES = {graph_file(step, "fp32"): step for step in STEPS} | {graph_file(step, "int8"): step for step in STEPS}


def opened(path):
    return GraphFile(path, path.read_bytes(), FILES[path.name], 1)


def copied(exported, tmp_path):
    return shutil.copytree(exported[0], tmp_path, dirs_exist_ok=True)


def test_export_measures_parity_size_and_a_charge_that_is_never_below_what_was_measured(exported, fitted):
    directory, found = exported
    assert {path.name for path in directory.iterdir()} <= {*FILES, latency.FILE, TRAINING_PROMPTS, MANIFEST}
    for step in STEPS:
        assert found.metrics[f"{step}_parity_error"] < 1e-4
        assert found.metrics[f"{step}_bytes"] == (directory / graph_file(step)).stat().st_size
    assert OnnxPredictor(directory).charge == found.charged
    assert found.charged == latency.charged(fitted.checkpoint.network.shape, found.measured)


def test_batch_and_stream_equal_pytorch(exported, fitted, validation_trace):
    predictor = OnnxPredictor(exported[0])
    prompt = validation_trace.select(np.array([3]))
    expected_TLE, expected_HTLE = map(sigmoid, torch_logits(fitted.checkpoint, prompt))
    assert np.allclose(predictor.probabilities_TLE(prompt), expected_TLE, atol=1e-5)
    assert np.allclose(predictor.layer_probabilities_HTLE(prompt), expected_HTLE, atol=1e-5)
    stream, previous = predictor.stream(), None
    for t, text in enumerate(prompt.token_texts.decode()):
        assert np.allclose(stream.step(text, previous), expected_TLE[t], atol=1e-5)
        previous = prompt.experts_TLK[t]
        for layer in range(2):
            expected_HE = np.zeros((predictor.horizon, 16))
            for h in range(min(predictor.horizon, 2 - layer)):
                expected_HE[h] = expected_HTLE[h, t, layer + 1 + h]
            assert np.allclose(stream.layer_step(layer, previous[layer]), expected_HE, atol=1e-5)


def test_no_layer_sees_its_own_routing_or_that_of_a_layer_within_its_horizon(exported, validation_trace):
    predictor = OnnxPredictor(exported[0])
    experts = validation_trace.experts_TLK.copy()
    experts[-1, 1] = (experts[-1, 1] + 1) % 16
    traces = validation_trace, replace(validation_trace, experts_TLK=experts)
    # the token step sees no routing of the token at all
    assert np.array_equal(*map(predictor.probabilities_TLE, traces))
    before, after = map(predictor.layer_probabilities_HTLE, traces)
    # only layer 2 of the last token, one layer ahead, may depend on what layer 1 chose
    last = validation_trace.num_tokens - 1
    assert np.argwhere((before != after).any(axis=-1)).tolist() == [[0, last, 2]]


def test_the_graphs_take_prompts_and_tokens_in_batches(exported, validation_trace):
    predictor = OnnxPredictor(exported[0])
    token = opened(exported[0] / graph_file("token_step"))
    prompts = [validation_trace.select(np.array([p])) for p in (0, 1)]
    features = [token_features(prompt, predictor.encoder) for prompt in prompts]
    inputs = {"tokens": "tokens_T", "letters": "letters_TG", "previous_experts": "previous_TLM"}
    inputs = {name: np.stack([getattr(x, field)[:5] for x in features]) for name, field in inputs.items()}
    inputs["keys"], inputs["values"] = (np.repeat(state, 2, axis=0) for state in predictor.empty_state())
    logits_BTLE, _, _, context_BTW, later_BTLE = token.run(inputs)
    experts_BK = np.stack([prompt.experts_TLK[4, 0].astype(np.int64) for prompt in prompts])
    state = predictor.layer_state(logits_BTLE[:, 4], context_BTW[:, 4])
    together, _ = predictor.run_layer(0, experts_BK, state)
    for b, prompt in enumerate(prompts):
        alone_TLE, alone_HTLE = predictor.both_logits(prompt)
        assert np.allclose(logits_BTLE[b], alone_TLE[:5], atol=1e-5)
        assert np.allclose(sigmoid(later_BTLE[b]), predictor.later_TLE(prompt)[:5], atol=1e-5)
        assert np.allclose(together[b, 0], alone_HTLE[0, 4, 1], atol=1e-5)


def test_prompts_are_independent_of_each_other(exported, validation_trace):
    predictor = OnnxPredictor(exported[0])
    start, end = validation_trace.prompt_offsets[4:6]
    alone = predictor.both_logits(validation_trace.select(np.array([4])))
    for one, together in zip(alone, predictor.both_logits(validation_trace), strict=True):
        assert np.allclose(together[..., start:end, :, :], one, atol=1e-5)


@pytest.mark.parametrize("bias_of", [("token_step", "output.bias"), ("layer_step", "norm.bias")])
def test_a_wrong_graph_is_noticed_and_refused(exported, fitted, validation_trace, tmp_path, bias_of):
    step, bias = bias_of
    path = copied(exported, tmp_path) / graph_file(step)
    model = onnx.load(path)
    weight = next(x for x in model.graph.initializer if x.name == bias)
    weight.raw_data = (onnx.numpy_helper.to_array(weight) + 1).astype(np.float32).tobytes()
    onnx.save(model, path)
    given = fitted.checkpoint, tmp_path, validation_trace
    assert parity(*given, 20)[step] > 0.005
    refused("do not ship this graph", require_parity, *given, ExportSettings(parity_tokens=20))


def redescribed(**changes):
    """Other metadata in a file."""
    return lambda path: describe(path, opened(path).description.model_dump(mode="json") | changes)


def bare(path):
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)


def of(ir=10, opset=20, operator=None):
    """Written by another release of ONNX."""

    def change(path):
        model = onnx.load(path)
        model.ir_version, model.opset_import[0].version = ir, opset
        if operator:
            model.graph.node[0].op_type = operator
        path.write_bytes(model.SerializeToString())

    return change


TOO_NEW = r"token_step\.onnx: too new for onnxruntime \S+ \({}.*\); install a newer one: .* needs 1\.18 or later$"
NO_PREDICTOR = [
    ("token_step", of(ir=99), TOO_NEW.format("Unsupported model IR version: 99, max supported ")),
    ("token_step", of(opset=99), TOO_NEW.format("Opset 99 is under development ")),
    (
        "token_step",
        of(operator="FromTheFuture"),
        "no graph of ours has the operator 'FromTheFuture'",
    ),
    ("token_step", lambda path: describe(path, {"step": "token_step"}), "metadata are damaged"),
    ("token_step", Path.unlink, "run the export stage first"),
    ("token_step", lambda path: path.write_bytes(b"no protobuf"), "not an ONNX file"),
    ("token_step", bare, "no 'moe_beyond' metadata"),
    ("token_step", redescribed(format_version=99), "version 99 is newer than this release, .*; upgrade moe-beyond$"),
    ("token_step", redescribed(format_version=1), "of an older release"),
    ("layer_step", redescribed(fit="0" * 16), r"from another fit than token_step\.onnx"),
    ("layer_step", lambda path: shutil.copy(path.parent / graph_file("token_step"), path), "expected the layer_step"),
    ("layer_step", Path.unlink, r"layer_step.onnx: no such file; run the export stage first"),
]


@pytest.mark.parametrize(("step", "change", "message"), NO_PREDICTOR)
def test_files_that_are_no_predictor_or_not_of_one_fit_are_refused(exported, tmp_path, step, change, message):
    change(copied(exported, tmp_path) / graph_file(step))
    # one that its owner wrote anew, so that the digests are right
    write_manifest(tmp_path, LEAST_ONNXRUNTIME)
    refused(message, lambda: OnnxPredictor(tmp_path).layer_step_ms(1))


def test_a_trace_of_another_model_is_refused(exported):
    predictor, other = OnnxPredictor(exported[0]), chance_trace(2, num_layers=2)
    refused("made for 3 layers, 16 experts, top-2", predictor.probabilities_TLE, other)


def test_routing_or_a_state_of_the_wrong_shape_and_layers_out_of_order_are_refused(exported):
    stream = OnnxPredictor(exported[0]).stream()

    refused("step is due", stream.layer_step, 0, [0, 1])
    refused("expected layers x top-k", stream.step, "word", np.zeros((2, 2)))
    refused("outside 0 to 15", stream.step, "word", np.full((3, 2), 16))
    stream.step("word", None)
    refused(r"routing of layer 0 has shape \(3,\), expected top-k \(2,\)", stream.layer_step, 0, [1, 2, 3])
    refused("outside 0 to 15", stream.layer_step, 0, [1, 16])
    refused("layer 0 is due; give layers 0 to 1 once, in order", stream.layer_step, 1, [0, 1])
    stream.layer_step(0, [0, 1])
    stream.layer_step(1, [0, 1])
    refused("step is due", stream.layer_step, 2, [0, 1])
    stream.step("word", np.zeros((3, 2)))
    stream.layer_step(0, [0, 1])
    stream._layers = replace(stream._layers, context_BW=np.zeros((1, 3), np.float32))
    refused(r"context has shape \(1, 3\), expected", stream.layer_step, 1, [1, 2])
    stream.keys_BNSD = np.zeros((1, 1, 0, 4), np.float32)
    refused(r"keys has shape \(1, 1, 0, 4\), expected", stream.step, "word", None)


def test_the_files_hold_nothing_of_the_machine_and_all_that_a_runtime_needs(exported):
    for file in set(FILES) & {path.name for path in exported[0].iterdir()}:
        model = onnx.load(exported[0] / file)
        assert [x.key for x in model.metadata_props] == [METADATA_KEY]
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        assert opened(exported[0] / file).description.features


def test_a_decode_loop_over_both_steps_needs_onnxruntime_numpy_and_pydantic_alone(exported):
    code = (
        "import sys; needless = 'torch lightning yaml polars pyarrow scipy datasketch onnx mlflow numba'.split()\n"
        "sys.modules.update(dict.fromkeys(needless))\n"
        "from pathlib import Path\n"
        "from moe_beyond.predictor.runtime import OnnxPredictor\n"
        f"stream = OnnxPredictor(Path({str(exported[0])!r})).stream()\n"
        "for token, before in (('word1', None), ('word2', [[0, 1]] * 3)):\n"
        "    print(stream.step(token, before).shape, *(stream.layer_step(i, [0, 1]).shape for i in range(2)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    horizon = OnnxPredictor(exported[0]).horizon
    assert done.stdout.splitlines() == [f"(3, 16) ({horizon}, 16) ({horizon}, 16)"] * 2
