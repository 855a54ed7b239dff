"""A valid file of every format, with some of its bytes changed: still a trace, or one line, and never anything else."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_beyond import formats as importers
from moe_beyond.errors import InputError

CONFIG = {
    "num_hidden_layers": 3,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "hidden_size": 16,
    "moe_intermediate_size": 4,
}


def _experts(tokens: int, layers: int, experts: int, top_k: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.permuted(np.tile(np.arange(experts), (tokens, layers, 1)), axis=2)[:, :, :top_k]


def _moe_beyond_csv() -> dict[str, bytes]:
    experts = _experts(2, 26, 64, 6)
    routed, predicted = io.StringIO(newline=""), io.StringIO(newline="")
    csv.writer(routed).writerow(["Layer ID", "Batch Number", "Token", "Activated Expert IDs"])
    csv.writer(predicted).writerow(["Layer ID", "Token", "Activated Expert IDs", "Predicted Expert IDs"])
    for layer in range(26):
        for token in range(2):
            ids = str(experts[token, layer].tolist())
            csv.writer(routed).writerow([layer + 1, 0, ['Ġ"', ","][token], ids])
            csv.writer(predicted).writerow([layer + 1, token, ids, ids])
    return {
        "formatted/prompt_1_data_formatted.csv": routed.getvalue().encode(),
        "predicted/prompt_1_data_predicted.csv": predicted.getvalue().encode(),
    }


def _esft() -> dict[str, bytes]:
    experts = _experts(2, 26, 64, 6)
    return {
        f"law/expert_weights_{layer + 1}.txt": "\t".join(
            [*map(str, experts[:, layer].reshape(-1).tolist()), "", *["0.1"] * 12]
        ).encode()
        for layer in range(26)
    }


def _gpt_oss() -> dict[str, bytes]:
    experts = _experts(2, 24, 32, 4)
    router_data = [
        {
            f"token_{token + 1}": {
                f"layer_{layer}": {"selected_experts": experts[token, layer].tolist(), "selected_probs": [0.25] * 4}
                for layer in range(24)
            }
        }
        for token in range(2)
    ]
    return {"a.json": json.dumps({"full_text": ["x", "y", "é"], "router_data": router_data}).encode()}


def _bigmoe() -> dict[str, bytes]:
    head = "# model=/x/m.gguf n_expert=8 n_expert_used=2\n# layer=0 expert_bytes=5\n# layer=1 expert_bytes=5\n"
    rows = [
        f"0,{int(step > 1)},{step},{layer},{slot},{expert},0.5"
        for step, routed in enumerate(_experts(4, 2, 8, 2).tolist())
        for layer, chosen in enumerate(routed)
        for slot, expert in enumerate(chosen)
    ]
    return {"a.route.csv": (head + "\n".join(["turn,phase,step,layer,slot,expert,weight", *rows])).encode()}


def _vllm() -> dict[str, bytes]:
    buffer = io.BytesIO()
    np.savez(buffer, routed_experts=_experts(4, 3, 8, 2).astype(np.int16), prompt_token_ids=[1, 2])
    return {"a.npz": buffer.getvalue(), "config.json": json.dumps(CONFIG).encode()}


def _llamacpp() -> dict[str, bytes]:
    rows = [
        f"{layer},{expert}"
        for routed in _experts(4, 3, 8, 2).tolist()
        for layer, ids in enumerate(routed)
        for expert in ids
    ]
    return {"a.csv": "\n".join(["layer,expert", *rows]).encode(), "config.json": json.dumps(CONFIG).encode()}


SOURCES = {
    "moe-beyond-csv": _moe_beyond_csv(),
    "esft": _esft(),
    "gpt-oss-fingerprint": _gpt_oss(),
    "bigmoe-route": _bigmoe(),
    "vllm-npz": _vllm(),
    "llamacpp-csv": _llamacpp(),
}


def test_every_format_has_a_source_here_that_is_valid(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert set(SOURCES) == set(importers.FORMATS)
    for name, files in SOURCES.items():
        assert _read(tmp_path_factory, name, files) > 1, name


@settings(max_examples=300)
@given(
    name=st.sampled_from(sorted(SOURCES)),
    # a byte that means something in these formats, or any
    edits=st.lists(
        st.tuples(st.integers(0), st.integers(0), st.sampled_from(b'0129,."[]{}:-\n\r\t \0\xff') | st.integers(0, 255)),
        min_size=1,
        max_size=3,
    ),
    kind=st.sampled_from(["replace", "insert", "delete"]),
)
def test_a_changed_byte_is_a_trace_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, edits: list[tuple[int, int, int]], kind: str
) -> None:
    files = {path: bytearray(data) for path, data in SOURCES[name].items()}
    for which, place, value in edits:
        data = files[sorted(files)[which % len(files)]]
        place %= len(data)  # noqa: PLW2901 - brought into the file
        data[place : place + (kind != "insert")] = b"" if kind == "delete" else bytes([value])
    try:
        assert _read(tmp_path_factory, name, files) > 0
    except InputError as error:
        assert "\n" not in str(error)


def _read(factory: pytest.TempPathFactory, name: str, files: dict[str, bytes] | dict[str, bytearray]) -> int:
    folder = factory.mktemp("source")
    for path, data in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(bytes(data))
    return importers.read(name, folder).num_tokens
