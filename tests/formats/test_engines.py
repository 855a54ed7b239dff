"""Routing that inference engines return: arrays of vLLM and SGLang, CSVs of llama.cpp, a config.json beside them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond import formats as importers
from moe_beyond.errors import InputError
from moe_beyond.formats import llamacpp_csv, vllm_npz
from moe_beyond.formats.model_config import read_shape

# four layers, the first of them dense
CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 4,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "hidden_size": 16,
    "intermediate_size": 64,
    "moe_intermediate_size": 4,
    "torch_dtype": "bfloat16",
}


def _experts(tokens: int, seed: int = 0) -> npt.NDArray[np.int16]:
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(8, dtype=np.int16), (tokens, 3, 1)), axis=2)[:, :, :2]


def _folder(path: Path, **changes: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return path


class TestConfig:
    def test_shape_of_a_deepseek(self) -> None:
        shape = read_shape(json.dumps(CONFIG).encode(), "c")
        assert (shape.moe_layers, shape.num_experts, shape.top_k) == ((1, 2, 3), 8, 2)
        assert shape.expert_bytes == 3 * 16 * 4 * 2

    @pytest.mark.parametrize(
        ("config", "layers", "expert_bytes"),
        [
            ({"mlp_only_layers": [1], "decoder_sparse_step": 1}, (0, 2, 3), 384),
            ({"decoder_sparse_step": 2}, (1, 3), 384),
            ({"quantization_config": {"quant_method": "fp8"}}, (0, 1, 2, 3), 192),
            ({"quantization_config": {"quant_method": "mxfp4"}}, (0, 1, 2, 3), 102),
            ({"quantization_config": {"quant_method": "awq", "bits": 4}}, (0, 1, 2, 3), 96),
            ({"dtype": "float32"}, (0, 1, 2, 3), 768),
        ],
    )
    def test_families_and_precisions(self, config: dict[str, Any], layers: tuple[int, ...], expert_bytes: int) -> None:
        plain = {key: value for key, value in CONFIG.items() if key != "first_k_dense_replace"}
        shape = read_shape(json.dumps({**plain, **config}).encode(), "c")
        assert (shape.moe_layers, shape.expert_bytes) == (layers, expert_bytes)

    def test_a_model_with_vision_keeps_its_text_config(self) -> None:
        assert read_shape(json.dumps({"text_config": CONFIG}).encode(), "c").num_experts == 8

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"n_routed_experts": None}, "none of n_routed_experts, num_experts"),
            ({"n_routed_experts": "8"}, "n_routed_experts is '8'"),
            ({"num_experts_per_tok": 9}, "not a mixture of experts"),
            ({"first_k_dense_replace": 4}, "0 layers with 8 experts"),
        ],
    )
    def test_a_config_of_no_moe_is_one_line(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            read_shape(json.dumps({**CONFIG, **change}).encode(), "c")

    @given(
        data=st.binary(max_size=100)
        | st.dictionaries(st.sampled_from(list(CONFIG)), st.integers() | st.text() | st.none())
        .map(json.dumps)
        .map(str.encode)
    )
    def test_any_bytes_are_a_shape_or_an_input_error(self, data: bytes) -> None:
        try:
            read_shape(data, "c")
        except InputError as error:
            assert "\n" not in str(error)


class TestVllm:
    def test_prompt_and_answer_apart(self, tmp_path: Path) -> None:
        folder = _folder(tmp_path / "run")
        for number in (10, 2):
            prompt, answer = _experts(3, number), _experts(2, number + 1)
            np.savez(
                folder / f"{number}.npz",
                prompt_routed_experts=prompt,
                routed_experts=answer,
                prompt_token_ids=[7, 8, 9],
                token_ids=[5, 6, number],
            )
        trace = importers.read("vllm-npz", folder)
        assert trace.prompt_ids == ("run/2", "run/10")
        assert trace.num_prefill_P.tolist() == [3, 3]
        assert trace.metadata.layer_numbers == (1, 2, 3)
        np.testing.assert_array_equal(trace.experts_TLK[5:8], _experts(3, 10))
        assert trace.token_ids_T is not None
        assert trace.token_ids_T[:5].tolist() == [7, 8, 9, 5, 6]
        assert importers.read("vllm-npz", folder, privacy="ids").token_ids_T is not None
        assert importers.read("vllm-npz", folder, privacy="routing").token_ids_T is None

    def test_one_array_with_places_for_dense_layers(self, tmp_path: Path) -> None:
        folder = _folder(tmp_path / "run")
        padded = np.concatenate([np.zeros((4, 1, 2), np.int32), _experts(4)], axis=1)
        np.savez_compressed(folder / "a.npz", routed_experts=padded, prompt_token_ids=[1, 2, 3])
        trace = importers.read("vllm-npz", folder / "a.npz")
        np.testing.assert_array_equal(trace.experts_TLK, _experts(4))
        assert trace.num_prefill_P.tolist() == [3]
        assert trace.token_ids_T is None

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({}, "no array 'routed_experts'"),
            ({"routed_experts": _experts(3)}, "neither prompt_routed_experts nor prompt_token_ids"),
            ({"routed_experts": _experts(3)[:, :, :1]}, "routing of shape .* expected tokens x layers x 2"),
            ({"routed_experts": _experts(3)[:, :2]}, "2 layers, config.json has 4 of which 3 have experts"),
            ({"routed_experts": _experts(3) - 1}, "-1 is routing that the engine lost"),
            ({"routed_experts": _experts(3) + 1}, "the model has 0 to 7"),
            ({"routed_experts": _experts(3).astype(float)}, "float64 in C order, expected integers"),
            ({"routed_experts": _experts(0), "prompt_token_ids": []}, "routing of no tokens|expected integers"),
            ({"routed_experts": _experts(3), "prompt_token_ids": [1, 2, 3, 4]}, "seems to hold the answer alone"),
            (
                {"routed_experts": _experts(3), "prompt_token_ids": [1], "token_ids": [1]},
                "token ids of shape .* for 3 routed tokens",
            ),
        ],
    )
    def test_a_broken_file_is_one_line(self, tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
        folder = _folder(tmp_path / "run")
        np.savez(folder / "a.npz", **arrays)
        with pytest.raises(InputError, match=message) as caught:
            importers.read("vllm-npz", folder)
        assert "a.npz" in str(caught.value)

    def test_without_a_config_the_mend_is_said(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", routed_experts=_experts(3))
        for source in (tmp_path, tmp_path / "a.npz"):
            with pytest.raises(InputError, match=r"config\.json.* copy the model's there"):
                importers.read("vllm-npz", source)

    def test_pickled_objects_are_refused(self, tmp_path: Path) -> None:
        folder = _folder(tmp_path / "run")
        np.savez(folder / "a.npz", routed_experts=np.array([{}], dtype=object))
        with pytest.raises(InputError, match="expected integers"):
            importers.read("vllm-npz", folder)

    @given(
        flips=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=6),
        cut=st.integers(0, 900),
    )
    def test_any_damage_is_a_trace_or_an_input_error(
        self, tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut: int
    ) -> None:
        folder = _folder(tmp_path_factory.mktemp("fuzz"))
        buffer = io.BytesIO()
        np.savez(buffer, routed_experts=_experts(3), prompt_token_ids=[1])
        data = bytearray(buffer.getvalue())
        for place, value in flips:
            data[place % len(data)] = value
        (folder / "a.npz").write_bytes(bytes(data[: max(cut, 1)]) if cut < 600 else bytes(data))
        try:
            assert vllm_npz.read(folder, None).num_tokens > 0
        except InputError as error:
            assert "\n" not in str(error)


def _batch_rows(experts_TLK: npt.NDArray[np.int16], last_layer_alone: bool = False) -> list[str]:
    rows = []
    for layer in range(3):
        tokens = experts_TLK[-1:, layer] if last_layer_alone and layer == 2 else experts_TLK[:, layer]
        rows += [f"{layer + 1},{expert}" for expert in tokens.reshape(-1).tolist()]
    return rows


class TestLlamaCpp:
    @pytest.mark.parametrize("header", [["layer,expert"], []])
    def test_batches_become_prefill_and_decode(self, tmp_path: Path, header: list[str]) -> None:
        folder = _folder(tmp_path / "run")
        experts = _experts(7)
        rows = (
            _batch_rows(experts[:3]) + _batch_rows(experts[3:5]) + _batch_rows(experts[5:6]) + _batch_rows(experts[6:])
        )
        (folder / "moe_trace.csv").write_text("\n".join(header + rows) + "\n")
        trace = importers.read("llamacpp-csv", folder)
        assert trace.num_prefill_P.tolist() == [5]
        np.testing.assert_array_equal(trace.experts_TLK, experts)

    def test_a_last_layer_for_the_last_token_alone_asks_for_nothing_new(self, tmp_path: Path) -> None:
        folder = _folder(tmp_path / "run")
        experts = _experts(4)
        rows = _batch_rows(experts[:3], last_layer_alone=True) + _batch_rows(experts[3:])
        (folder / "a.csv").write_text("\n".join(rows))
        trace = importers.read("llamacpp-csv", folder)
        np.testing.assert_array_equal(trace.experts_TLK[:, :2], experts[:, :2])
        np.testing.assert_array_equal(trace.experts_TLK[:3, 2], np.broadcast_to(experts[2, 2], (3, 2)))

    @pytest.mark.parametrize(
        ("row", "text", "message"),
        [
            (3, "0,1", "row 4: layer is 0, expected a layer with experts"),
            (3, "1,8", "row 4: expert is 8, expected 0 to 7"),
            (3, "1,x", "row 4: expert is 'x', expected a whole number"),
            (3, "1", "row 4: 1 fields, expected 2"),
            (3, "2,1", "row 1: the batch that begins here has"),
        ],
    )
    def test_a_broken_file_is_one_line(self, tmp_path: Path, row: int, text: str, message: str) -> None:
        folder = _folder(tmp_path / "run")
        rows = _batch_rows(_experts(3))
        rows[row] = text
        (folder / "a.csv").write_text("\n".join(rows))
        with pytest.raises(InputError, match=message):
            importers.read("llamacpp-csv", folder)

    @given(data=st.binary(max_size=200) | st.text(alphabet="0123,\n\r", max_size=200).map(str.encode))
    def test_any_bytes_are_a_trace_or_an_input_error(
        self, tmp_path_factory: pytest.TempPathFactory, data: bytes
    ) -> None:
        folder = _folder(tmp_path_factory.mktemp("fuzz"))
        (folder / "a.csv").write_bytes(data)
        try:
            assert llamacpp_csv.read(folder, None).num_tokens > 0
        except InputError as error:
            assert "\n" not in str(error)
