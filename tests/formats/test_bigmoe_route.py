"""BigMoeOnEdge's route.csv: shape from the comments, batched prefill, and every broken rule as one line."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond import formats as importers
from moe_beyond.errors import InputError
from moe_beyond.formats import bigmoe_route

SHARED = Path(__file__).parents[4] / "shared" / "traces" / "bigmoe-on-edge"
HEAD = [
    "# route_trace v1",
    "# model=/x/Toy-Q4.gguf arch=toy n_layer=3 n_expert=4 n_expert_used=2",
    "# layer=0 expert_bytes=0 dense_bytes=9",
    "# layer=1 expert_bytes=100 dense_bytes=9",
    "# layer=2 expert_bytes=200 dense_bytes=9",
    "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes",
]
# two prefill tokens (the last layer for the second one alone), one decoded token
ROUTING = [
    (0, 0, 0, 1, (3, 0)),
    (0, 0, 1, 1, (1, 2)),
    (0, 0, 1, 2, (2, 3)),
    (0, 1, 2, 1, (0, 1)),
    (0, 1, 2, 2, (3, 1)),
]


def _lines() -> list[str]:
    rows = [
        f"{turn},{phase},{step},{layer},{slot},{expert},{0.75 - 0.5 * slot},0,100"
        for turn, phase, step, layer, experts in ROUTING
        for slot, expert in enumerate(experts)
    ]
    return HEAD + rows


def _write(path: Path, lines: list[str]) -> Path:
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["toy.route.csv", "toy.route.csv.gz"])
def test_shape_phases_weights_and_bytes_are_read(tmp_path: Path, name: str) -> None:
    trace = importers.read("bigmoe-route", _write(tmp_path / name, _lines()))
    meta = trace.metadata
    assert (meta.model_id, meta.layer_numbers, meta.num_experts, meta.top_k) == ("Toy-Q4", (1, 2), 4, 2)
    assert meta.expert_bytes == (100, 200)
    assert trace.prompt_ids == ("toy/turn_0",)
    assert trace.num_prefill_P.tolist() == [2]
    assert trace.experts_TLK[:, 0].tolist() == [[3, 0], [1, 2], [0, 1]]
    assert trace.weights_TLK is not None
    np.testing.assert_array_equal(trace.weights_TLK[2], [[0.75, 0.25]] * 2)


def test_the_skipped_last_layer_of_a_prefill_asks_for_nothing_new(tmp_path: Path) -> None:
    trace = importers.read("bigmoe-route", _write(tmp_path / "toy.route.csv", _lines()))
    assert trace.experts_TLK[:2, 1].tolist() == [[2, 3], [2, 3]]
    assert trace.weights_TLK is not None
    assert trace.weights_TLK[0, 1].tolist() == [0, 0]


def test_turns_become_prompts(tmp_path: Path) -> None:
    second = [line.replace("0,", "1,", 1) for line in _lines()[6:]]
    trace = importers.read("bigmoe-route", _write(tmp_path / "toy.route.csv", _lines() + second))
    assert trace.prompt_ids == ("toy/turn_0", "toy/turn_1")
    assert trace.prompt_offsets.tolist() == [0, 3, 6]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n_expert=4", "experts=4", "expected the header of a route_trace v1"),
        ("# layer=", "# lay=", "no comment line with '# layer="),
        ("n_expert_used=2", "n_expert_used=5", "are no MoE's shape"),
        ("n_expert_used=2", "n_expert_used=4", "10 rows for 3 tokens; every token needs 4 in each of 2 layers"),
        ("0,0,0,1,1,0,", "0,0,0,1,1,4,", "row 8: expert is 4, expected 0 to 3"),
        ("0,0,0,1,1,0,", "0,0,0,1,2,0,", "row 8: slot is 2, expected 0 to 1"),
        ("0,0,0,1,1,0,", "0,0,0,1,0,0,", "row 7: slot is 0, expected one row for each"),
        ("0,0,0,1,1,0,", "0,2,0,1,1,0,", "row 8: phase is 2"),
        ("0,0,0,1,1,0,", "0,1,0,1,1,0,", "row 7: phase is 0, expected one phase a step"),
        ("0,0,0,1,1,0,", "0,0,0,7,1,0,", "row 8: layer is 7"),
        ("0,0,0,1,1,0,0.25", "0,0,0,1,1,0,nan", "row 8: weight is 'nan', expected a finite number from 0"),
        ("0,0,0,1,1,0,0.25", "0,0,0,1,1,0,-0.25", "row 8: weight is '-0.25'"),
        ("0,0,0,1,1,0,0.25,0,100\n", "", "step 0, layer 1: no row for slot 1"),
        ("0,1,2,2,1,1,0.25,0,100\n", "", "step 2, layer 2: no row for slot 1"),
        ("\n0,1,2,", "\n0,1,4,", "turn 0: step 2 is missing"),
        (",slot,", ",place,", "row 6: column 'slot' is missing"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = "\n".join(_lines()) + "\n"
    assert old in text
    path = tmp_path / "toy.route.csv"
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        importers.read("bigmoe-route", path)
    assert "toy.route.csv" in str(caught.value)


@given(data=st.binary(max_size=300) | st.text(alphabet="0123456789,.#=-ne\n", max_size=300).map(str.encode))
def test_any_bytes_are_a_trace_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    for name, head in (("a.route.csv", []), ("b.route.csv", HEAD[:5]), ("c.route.csv", HEAD)):
        (folder / name).write_bytes("\n".join([*head, ""]).encode() + data if head else data)
        try:
            assert bigmoe_route.read(folder / name, None).num_tokens > 0
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("name", "model", "tokens", "prefill"),
    [("qwen", "Qwen3-30B-A3B-Q4_K_M", 156, 28), ("gptoss", "gpt-oss-120b-Q4_K_M", 149, 85)],
)
def test_the_phone_recordings_are_read(name: str, model: str, tokens: int, prefill: int) -> None:
    path = SHARED / f"{name}.route.csv.gz"
    if not path.exists():
        pytest.skip(f"{path.name}: the phone recordings are not beside the repository")
    trace = importers.read("bigmoe-route", path)
    assert trace.metadata.model_id == model
    assert (trace.num_tokens, trace.num_prefill_P.tolist()) == (tokens, [prefill])
    assert trace.metadata.licence == "Apache-2.0"
