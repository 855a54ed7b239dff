from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest

from moe_beyond.calibration import reliability
from moe_beyond.errors import InputError
from moe_beyond.metrics import score
from moe_beyond.predictor import quantise
from moe_beyond.predictor.graph_file import STEPS, graph_file
from moe_beyond.predictor.quantise import quantise_steps, recall
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.predictor.scaling import Scaling


@pytest.fixture
def fp32(exported, tmp_path):
    for step in STEPS:
        (tmp_path / graph_file(step)).write_bytes((exported[0] / graph_file(step)).read_bytes())
    return tmp_path


def quantised(directory: Path, validation, points):
    return quantise_steps(directory, validation, allowed_points=points, latency_repeats=5)


def test_the_smallest_int8_files_that_lose_little_are_kept(fp32, validation_trace):
    tried = quantised(fp32, validation_trace, points=100)
    assert tried["int8_operators"].to_list() == ["none", "linear+embedding", "linear", "embedding"] * 2
    for step in STEPS:
        rows = tried.filter(pl.col("step") == step)
        chosen = rows.filter("chosen").row(0, named=True)
        assert chosen["size_bytes"] == rows["size_bytes"].min() == (fp32 / graph_file(step, "int8")).stat().st_size
        plain = rows.filter(pl.col("int8_operators") == "none").row(0, named=True)
        assert chosen["lost_points"] == pytest.approx(100 * (plain["recall_at_k"] - chosen["recall_at_k"]))
    int8 = OnnxPredictor(fp32, precision="int8")
    measured = tried.filter(pl.col("chosen") & (pl.col("step") == "layer_step"))["recall_at_k"].item()
    assert recall(int8, "layer_step", validation_trace) == measured
    assert int8.scaling.scale_L.tolist() == OnnxPredictor(fp32).scaling.scale_L.tolist()


def test_int8_weights_are_int8(fp32, validation_trace):
    quantised(fp32, validation_trace, points=100)
    model = onnx.load(fp32 / graph_file("token_step", "int8"))
    kinds = {x.data_type for x in model.graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert "MatMulInteger" in {node.op_type for node in model.graph.node}


def test_where_every_choice_loses_too_much_nothing_is_written(fp32, validation_trace, monkeypatch):
    whole = recall(OnnxPredictor(fp32), "token_step", validation_trace)
    real = quantise.recall
    monkeypatch.setattr(
        quantise, "recall", lambda p, step, trace: whole - 0.2 if p.precision == "int8" else real(p, step, trace)
    )
    tried = quantised(fp32, validation_trace, points=0.5)
    assert not tried["chosen"].any()
    # without an int8 token step there is nothing for the layer step to go on from
    assert tried.filter(pl.col("step") == "layer_step")["int8_operators"].to_list() == ["none"]
    with pytest.raises(InputError, match=r"token_step\.int8\.onnx: no such file"):
        OnnxPredictor(fp32, precision="int8")


def test_what_hurts_stays_in_fp32(fp32, validation_trace, monkeypatch):
    real = quantise.recall

    def hurt_by_embeddings(predictor, step, trace):
        names = [x.name for x in onnx.load(predictor.path).graph.initializer]
        quantised_embedding = any(name.startswith("token_embedding") and "quantized" in name for name in names)
        return real(predictor, step, trace) - (0.3 if step == "token_step" and quantised_embedding else 0)

    monkeypatch.setattr(quantise, "recall", hurt_by_embeddings)
    tried = quantised(fp32, validation_trace, points=20)
    token = tried.filter(pl.col("chosen") & (pl.col("step") == "token_step"))
    assert token["int8_operators"].to_list() == ["linear"]


def test_recall_of_a_step_is_that_of_its_probabilities(exported, validation_trace):
    predictor = OnnxPredictor(exported[0])
    assert recall(predictor, "token_step", validation_trace) == pytest.approx(
        score(predictor, validation_trace).mean() / 2
    )


def test_a_shipped_predictor_is_calibrated_on_validation(exported, validation_trace):
    predictor = OnnxPredictor(exported[0])
    token, layers = predictor.both_logits(validation_trace)
    for scaling, logits in zip((predictor.scaling, *predictor.layer_scaling_H), (token, *layers), strict=True):
        for layer in range(3):
            part = slice(layer, layer + 1)
            truth = validation_trace.experts_TLK[:, part]
            plain = reliability(Scaling.identity(1).probabilities(logits[:, part]), truth)
            scaled = reliability(scaling.layer(layer).probabilities(logits[:, part]), truth)
            # as many experts are expected as there are; the slope's likelihood can only have risen
            assert scaled.sum_B.sum() == pytest.approx(scaled.true_B.sum(), rel=0.02)
            assert scaled.calibration_error < plain.calibration_error + 0.005
        assert set(scaling.thresholds_L) == {0.8, 0.9, 0.95}


def test_thresholds_cover_their_share_of_the_validation_split(exported, validation_trace):
    predictor = OnnxPredictor(exported[0])
    probabilities = predictor.probabilities_TLE(validation_trace)
    true = np.take_along_axis(probabilities, validation_trace.experts_TLK.astype(int), axis=2)
    for coverage, threshold_L in predictor.scaling.thresholds_L.items():
        share_L = (true >= threshold_L.astype(np.float32)[:, None]).mean(axis=(0, 2))
        assert (share_L >= coverage - 0.005).all()
