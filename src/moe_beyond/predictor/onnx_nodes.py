"""What a graph in an ONNX file would run, read from its bytes before a session is opened, without the onnx package.

The layout is that of onnx.proto (https://github.com/onnx/onnx/blob/v1.18.0/onnx/onnx.proto): a message is a row of
fields, each a number and a wire type (https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

from collections.abc import Iterator

_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5

# what the export stage's graphs consist of: none of them holds another graph, so that nothing can loop
# fmt: off
OPERATORS = frozenset([
    "Abs", "Add", "And", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "Div",
    "DynamicQuantizeLinear", "Equal", "Erf", "Expand", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm",
    "Greater", "GreaterOrEqual", "Identity", "LayerNormalization", "Less", "LessOrEqual", "MatMul", "MatMulInteger",
    "Max", "Min", "Mul", "Neg", "Not", "Or", "Pad", "Pow", "Range", "ReduceMax", "ReduceMean", "ReduceSum", "Relu",
    "Reshape", "ScatterElements", "ScatterND", "Shape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Squeeze",
    "Sub", "Tanh", "Tile", "TopK", "Transpose", "Unsqueeze", "Where",
])
# fmt: on


def refusal(data: bytes) -> str | None:
    """Why a file's graph is not opened, in words; None if nothing speaks against it.

    Raises:
        ValueError: The bytes are no message.
    """
    for number, value in _fields(memoryview(data)):
        if number in (_MODEL_TRAINING, _MODEL_FUNCTIONS):
            return "it defines functions of its own"
        if number == _MODEL_GRAPH and (found := _refusal_of_graph(_bytes(value))):
            return found
    return None


def _refusal_of_graph(graph: memoryview) -> str | None:
    for number, value in _fields(graph):
        if number == _GRAPH_SPARSE:
            return "it holds sparse tensors"
        if number == _GRAPH_INITIALIZER and _lies_elsewhere(_bytes(value)):
            return "it takes weights from other files"
        if number == _GRAPH_NODE and (found := _refusal_of_node(_bytes(value))):
            return found
    return None


def _refusal_of_node(node: memoryview) -> str | None:
    operator, domain = "", ""
    for number, value in _fields(node):
        if number == _NODE_OPERATOR:
            operator = bytes(_bytes(value)).decode()
        elif number == _NODE_DOMAIN:
            domain = bytes(_bytes(value)).decode()
        elif number == _NODE_ATTRIBUTE:
            for kind, part in _fields(_bytes(value)):
                if kind in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                    return "an operator holds a graph of its own"
                if kind in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS) and _lies_elsewhere(_bytes(part)):
                    return "it takes weights from other files"
    if domain not in ("", "ai.onnx") or operator not in OPERATORS:
        name = ".".join(filter(None, (domain, operator)))
        return f"no graph of ours has the operator {name[:80]!r}"
    return None


def _lies_elsewhere(tensor: memoryview) -> bool:
    return any(
        number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0) for number, value in _fields(tensor)
    )


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an integer, or the bytes of a string or of a message within."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == _LENGTH:
            size, at = _varint(message, at)
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            size = 8 if wire == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(message):
            raise ValueError("a field ends after the file")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("the file ends in the middle of a number")
        byte, at = message[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message is expected")
    return value
