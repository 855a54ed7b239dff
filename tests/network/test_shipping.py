import onnx
import pytest

from moe_beyond.errors import InputError
from moe_beyond.evaluation.scores import score
from moe_beyond.network import quantise
from moe_beyond.network.quantise import quantise_steps, recall
from moe_beyond.predictor.graph_file import STEPS, graph_file
from moe_beyond.predictor.runtime import OnnxPredictor


@pytest.fixture
def fp32(exported, tmp_path):
    for step in STEPS:
        (tmp_path / graph_file(step)).write_bytes((exported[0] / graph_file(step)).read_bytes())
    return tmp_path


def test_int8_files_that_lose_little_are_kept_and_their_loss_is_told(fp32, validation_trace):
    lost = quantise_steps(fp32, validation_trace, 100)
    plain, int8 = OnnxPredictor(fp32), OnnxPredictor(fp32, precision="int8")
    for step in STEPS:
        assert (fp32 / graph_file(step, "int8")).stat().st_size < (fp32 / graph_file(step)).stat().st_size
        change = recall(plain, step, validation_trace) - recall(int8, step, validation_trace)
        assert lost[step] == pytest.approx(100 * change)
    model = onnx.load(fp32 / graph_file("token_step", "int8"))
    assert onnx.TensorProto.INT8 in {x.data_type for x in model.graph.initializer}
    assert "MatMulInteger" in {node.op_type for node in model.graph.node}


def test_int8_files_that_lose_too_much_are_not_kept(fp32, validation_trace, monkeypatch):
    real = quantise.recall

    def worse_layer_step(predictor, step, trace):
        worse = step == "layer_step" and predictor.precision == "int8"
        return real(predictor, step, trace) - (0.2 if worse else 0)

    monkeypatch.setattr(quantise, "recall", worse_layer_step)
    assert quantise_steps(fp32, validation_trace, 0.5)["layer_step"] > 19
    with pytest.raises(InputError, match=r"token_step\.int8\.onnx: no such file"):
        OnnxPredictor(fp32, precision="int8")


def test_recall_of_a_step_is_that_of_its_probabilities(exported, validation_trace):
    predictor = OnnxPredictor(exported[0])
    assert recall(predictor, "token_step", validation_trace) == pytest.approx(
        score(predictor, validation_trace).mean() / 2
    )
