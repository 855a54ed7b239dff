import onnx
import pytest

from moe_beyond.evaluation.scores import score
from moe_beyond.network import quantise
from moe_beyond.network.quantise import quantise_steps, recalls
from moe_beyond.predictor.graph_file import STEPS, graph_file
from moe_beyond.predictor.runtime import OnnxPredictor
from tests.traces.refusals import refused


@pytest.fixture
def fp32(exported, tmp_path):
    for step in STEPS:
        (tmp_path / graph_file(step)).write_bytes((exported[0] / graph_file(step)).read_bytes())
    return tmp_path


def test_int8_files_that_lose_little_are_kept_and_their_loss_is_given(fp32, validation_trace):
    lost = quantise_steps(fp32, validation_trace, 100)
    plain, int8 = (
        recalls(OnnxPredictor(fp32, precision=p, finished=False), validation_trace) for p in ("fp32", "int8")
    )
    for step in STEPS:
        assert (fp32 / graph_file(step, "int8")).stat().st_size < (fp32 / graph_file(step)).stat().st_size
        assert lost[step] == pytest.approx(100 * (plain[step] - int8[step]))
    assert plain["token_step"] == pytest.approx(score(OnnxPredictor(fp32, finished=False), validation_trace).mean() / 2)
    model = onnx.load(fp32 / graph_file("token_step", "int8"))
    assert onnx.TensorProto.INT8 in {x.data_type for x in model.graph.initializer}
    assert "MatMulInteger" in {node.op_type for node in model.graph.node}


def test_int8_files_that_lose_too_much_are_not_kept(fp32, validation_trace, monkeypatch):
    def worse_layer_step(predictor, _trace):
        return {"token_step": 0.8, "layer_step": 0.7 if predictor.precision == "int8" else 0.9}

    monkeypatch.setattr(quantise, "recalls", worse_layer_step)
    assert quantise_steps(fp32, validation_trace, 0.5)["layer_step"] == pytest.approx(20)
    refused(r"token_step\.int8\.onnx: no such file", OnnxPredictor, fp32, precision="int8", finished=False)
