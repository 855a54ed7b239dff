"""GPT-OSS fingerprints: decode tokens with their strings, and every broken rule as one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond import formats as importers
from moe_beyond.errors import InputError
from moe_beyond.formats import gpt_oss_fingerprint

SHARED = Path(__file__).parents[4] / "shared" / "traces"
Document = dict[str, Any]


def _document() -> Document:
    """Three prompt tokens, four generated ones, of which the last was never fed back."""
    rng = np.random.default_rng(0)
    router_data = []
    for position in (3, 4, 5):
        layers = {}
        for layer in range(24):
            weights = np.sort(rng.dirichlet(np.ones(4)))[::-1].tolist()
            layers[f"layer_{layer}"] = {"selected_experts": rng.permutation(32)[:4].tolist(), "selected_probs": weights}
        router_data.append({f"token_{position}": layers})
    return {"dataset": "mmlu", "full_text": list("abcDEFG"), "generated_only": list("DEFG"), "router_data": router_data}


def _write(folder: Path, document: Document, name: str = "x.json") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_tokens_experts_and_weights_are_read_as_decode(tmp_path: Path) -> None:
    document = _document()
    trace = importers.read("gpt-oss-fingerprint", _write(tmp_path / "set", document))
    assert (trace.num_tokens, trace.domains, trace.prompt_ids) == (3, ("mmlu",), ("x",))
    assert not trace.is_prefill_T.any()
    assert trace.token_texts is not None
    assert trace.token_texts.decode() == ["D", "E", "F"]
    last = document["router_data"][2]["token_5"]["layer_23"]
    assert trace.experts_TLK[2, 23].tolist() == last["selected_experts"]
    assert trace.weights_TLK is not None
    np.testing.assert_allclose(trace.weights_TLK[2, 23], last["selected_probs"], rtol=1e-3)


def _layer(document: Document) -> Document:
    layers: Document = document["router_data"][1]["token_4"]
    return layers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("full_text"), "'full_text' is missing"),
        (lambda d: d.pop("router_data"), "'router_data' is missing"),
        (lambda d: d.update(router_data=[]), "'router_data' is missing or no list with elements"),
        (lambda d: d["router_data"].pop(1), "token_5 follows token_3; positions must be consecutive"),
        (lambda d: d.update(full_text=["a"]), "token_5 has no string in full_text"),
        (lambda d: d.update(full_text=list(range(9))), "token_5 has no string in full_text"),
        (lambda d: d["router_data"].append({"x": {}}), "expected 'token_<position>'"),
        (lambda d: d["router_data"].append(7), "expected one 'token_<position>'"),
        (lambda d: _layer(d).pop("layer_7"), "token_4 has .* expected layer_0 to layer_23"),
        (lambda d: _layer(d)["layer_7"].update(selected_experts=[1, 2, 3]), "token_4, layer_7: expected 4"),
        (lambda d: _layer(d)["layer_7"].update(selected_experts=[1, 2, 3, 32]), "token_4, layer_7: selected_experts"),
        (lambda d: _layer(d)["layer_7"].update(selected_experts=[1, 2, 3, True]), "token_4, layer_7: selected_experts"),
        (
            lambda d: _layer(d)["layer_7"].update(selected_experts=[1, 2, 3, 3]),
            "position 1, layer 7: an expert is listed",
        ),
        (lambda d: _layer(d)["layer_7"].update(selected_probs=[0.5, 0.5, 0, -1]), "token_4, layer_7: selected_probs"),
        (lambda d: _layer(d).update(layer_7=None), "token_4, layer_7: expected 4"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, change: Callable[[Document], object], message: str) -> None:
    document = _document()
    change(document)
    with pytest.raises(InputError, match=message) as caught:
        importers.read("gpt-oss-fingerprint", _write(tmp_path / "set", document))
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_one_line(tmp_path: Path) -> None:
    folder = _write(tmp_path / "set", _document())
    (folder / "x.json").write_bytes((folder / "x.json").read_bytes()[:-300])
    with pytest.raises(InputError, match=r"x\.json: not valid JSON"):
        importers.read("gpt-oss-fingerprint", folder)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["full_text", "router_data", "token_0", "layer_0", "selected_experts", "dataset"]), inner
        )
    ),
    max_leaves=20,
)


@given(data=st.binary(max_size=200) | _json.map(json.dumps).map(str.encode))
def test_any_bytes_are_a_trace_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.json"
    path.write_bytes(data)
    try:
        assert gpt_oss_fingerprint.read(path, None).num_tokens > 0
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.slow
def test_the_published_archive_gives_the_published_counts() -> None:
    archive = SHARED / "gpt-oss-20b.tar.xz"
    if not archive.exists():
        pytest.skip(f"{archive.name}: the published traces are not beside the repository")
    trace = importers.read("gpt-oss-fingerprint", archive)
    assert (trace.num_prompts, trace.num_tokens) == (220, 69_175)
    assert not trace.is_prefill_T.any()
    assert trace.weights_TLK is not None
    np.testing.assert_allclose(trace.weights_TLK.astype(np.float32).sum(axis=2), 1, atol=0.02)
