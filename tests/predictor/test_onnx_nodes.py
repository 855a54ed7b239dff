"""Graphs that the export stage cannot have written are refused before onnxruntime sees them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from moe_beyond.predictor.graph_file import STEPS, graph_file
from moe_beyond.predictor.onnx_nodes import OPERATORS, refusal


def model(*nodes, weights=(), functions=(), domains=("",)):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph(list(nodes), "g", [x], [y], list(weights))
    imports = [helper.make_opsetid(domain, 20) for domain in domains]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions))


def weight(**changes):
    tensor = numpy_helper.from_array(np.zeros(1, np.float32), "w")
    for name, value in changes.items():
        setattr(tensor, name, value)
    return tensor


def external():
    tensor = weight(data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def looping():
    body = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "body", [], [])
    return helper.make_node("Loop", ["n", "c"], ["y"], body=body)


ADD = helper.make_node("Add", ["x", "w"], ["y"])
FUNCTION = helper.make_function("ours", "Add", ["x"], ["y"], [ADD], [helper.make_opsetid("", 20)])
REFUSED = [
    (model(looping()), "holds a graph of its own"),
    (model(helper.make_node("If", ["x"], ["y"])), "no graph of ours has the operator 'If'"),
    (model(helper.make_node("Add", ["x", "w"], ["y"], domain="com.evil")), "'com.evil.Add'"),
    (model(ADD, weights=[external()]), "weights from other files"),
    (model(helper.make_node("Constant", [], ["y"], value=external())), "weights from other files"),
    (model(ADD, functions=[FUNCTION]), "functions of its own"),
]


@pytest.mark.parametrize(("made", "message"), REFUSED)
def test_what_is_not_ours_is_refused_with_the_reason(made, message):
    assert message in refusal(made.SerializeToString())


def test_what_is_ours_is_not(exported):
    assert refusal(model(ADD, weights=[weight()]).SerializeToString()) is None
    for step in STEPS:
        for precision in ("fp32", "int8"):
            data = (exported[0] / graph_file(step, precision)).read_bytes()
            assert refusal(data) is None
            assert {node.op_type for node in onnx.load_from_string(data).graph.node} <= OPERATORS


def test_damaged_bytes_end_in_an_answer_or_a_value_error(exported):
    whole, draw = (exported[0] / graph_file("layer_step")).read_bytes(), np.random.default_rng(1)
    for _ in range(300):
        data = bytearray(whole)
        for at in draw.integers(0, min(len(data), 4000), 5):
            data[at] = draw.integers(256)
        try:
            found = refusal(bytes(data[: int(draw.integers(1, len(data)))]))
        except ValueError:
            continue
        assert found is None or found
