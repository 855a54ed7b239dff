"""ESFT's expert scores: sequences across layer files, and every broken rule as one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond import formats as importers
from moe_beyond.errors import InputError
from moe_beyond.formats import esft

SHARED = Path(__file__).parents[4] / "shared" / "traces"
LENGTHS = (2, 3)


def _experts(tokens: int, seed: int) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(64, dtype=np.uint8), (tokens, 26, 1)), axis=2)[:, :, :6]


def _line(ids: npt.NDArray[np.uint8]) -> str:
    flat = ids.reshape(-1)
    return "\t".join([*map(str, flat.tolist()), "", *(f"{1 / (2 + expert):.4f}" for expert in flat.tolist())])


def _write(folder: Path) -> list[npt.NDArray[np.uint8]]:
    sequences = [_experts(length, number) for number, length in enumerate(LENGTHS)]
    (folder / "law").mkdir(parents=True)
    for layer in range(26):
        lines = [_line(sequence[:, layer]) for sequence in sequences]
        (folder / "law" / f"expert_weights_{layer + 1}.txt").write_text("\n".join(lines) + "\n")
    return sequences


def test_sequences_become_prompts_of_their_task(tmp_path: Path) -> None:
    sequences = _write(tmp_path)
    trace = importers.read("esft", tmp_path)
    assert trace.prompt_ids == ("law/sequence_0", "law/sequence_1")
    assert trace.domains == ("law", "law")
    assert trace.num_prefill_P.tolist() == list(LENGTHS)
    np.testing.assert_array_equal(trace.experts_TLK, np.concatenate(sequences))
    assert trace.weights_TLK is not None
    expected = 1 / (2 + trace.experts_TLK.astype(np.float64))
    np.testing.assert_allclose(trace.weights_TLK, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "old", "new", "message"),
    [
        (4, "\t\t", "\t", r"expert_weights_4\.txt: row 1: 24 ids, 0 weights"),
        (4, "\t\t", "\t\t0.1\t", "row 1: 12 ids, 13 weights"),
        (4, "\t\t", "\t64\t\t", "row 1: 13 ids, 12 weights"),
        (4, "0.", "-0.", "row 1: gate weight '-0."),
        (4, "0.", "nan", "row 1: a gate weight is no number|row 1: gate weight 'nan"),
        (4, "0.", "x", "row 1: a gate weight is no number"),
        (4, "\n", "", r"expert_weights_4\.txt"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, layer: int, old: str, new: str, message: str) -> None:
    _write(tmp_path)
    path = tmp_path / "law" / f"expert_weights_{layer}.txt"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        importers.read("esft", tmp_path)
    assert "\n" not in str(caught.value)


def test_an_id_out_of_range_is_named(tmp_path: Path) -> None:
    _write(tmp_path)
    path = tmp_path / "law" / "expert_weights_4.txt"
    first, _, rest = path.read_text().partition("\t")
    path.write_text(f"64\t{rest}")
    assert first != "64"
    with pytest.raises(InputError, match=r"expert_weights_4\.txt: row 1: expert id '64'"):
        importers.read("esft", tmp_path)


def test_a_missing_layer_and_uneven_layers_are_named(tmp_path: Path) -> None:
    _write(tmp_path)
    path = tmp_path / "law" / "expert_weights_4.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(reversed(lines)))
    with pytest.raises(InputError, match=r"expert_weights_4\.txt has row 1 with 3 tokens, layer 1 has 2"):
        importers.read("esft", tmp_path)
    path.write_text(lines[0])
    with pytest.raises(InputError, match=r"expert_weights_4\.txt has 1 rows, layer 1 has 2"):
        importers.read("esft", tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"expert_weights_4\.txt is missing"):
        importers.read("esft", tmp_path)


@given(data=st.binary(max_size=200) | st.text(alphabet="0123456789\t.\n-e", max_size=200).map(str.encode))
def test_any_bytes_are_a_trace_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    for layer in range(1, 27):
        (folder / f"expert_weights_{layer}.txt").write_bytes(data)
    try:
        assert esft.read(folder, None).num_tokens > 0
    except InputError as error:
        assert "\n" not in str(error)


def test_the_published_archive_gives_the_published_counts() -> None:
    archive = SHARED / "esft.tar.xz"
    if not archive.exists():
        pytest.skip(f"{archive.name}: the published traces are not beside the repository")
    trace = importers.read("esft", archive)
    assert trace.num_prompts == 173
    assert sorted(set(trace.domains)) == ["intent", "law", "summary"]
    assert trace.metadata.licence == "MIT"
