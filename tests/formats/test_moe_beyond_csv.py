"""The paper's CSVs: real quirks are read right, every broken rule is one line with file and row."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond import formats as importers
from moe_beyond.errors import InputError
from moe_beyond.formats import moe_beyond_csv
from moe_beyond.traces.schema import Trace

SHARED = Path(__file__).parents[4] / "shared" / "traces"
TOKENS = ["<｜begin▁of▁sentence｜>", 'Ġ"', '"', ",", "a\n", '""",', "Ġünï"]  # noqa: RUF001 - the tokenizer's own
Rows = list[list[str]]


def _experts(tokens: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(64, dtype=np.uint8), (tokens, 26, 1)), axis=2)[:, :, :6]


def _routed_rows(experts_TLK: npt.NDArray[np.uint8], tokens: list[str]) -> Rows:
    header = ["Layer ID", "Batch Number", "Token", "Activated Expert IDs"]
    return [header] + [
        [str(layer + 1), "0", token, str(experts_TLK[t, layer].tolist())]
        for layer in range(26)
        for t, token in enumerate(tokens)
    ]


def _predicted_rows(experts_TLK: npt.NDArray[np.uint8], predicted_TLK: npt.NDArray[np.uint8]) -> Rows:
    header = ["Layer ID", "Token", "Activated Expert IDs", "Predicted Expert IDs"]
    return [header] + [
        [str(layer + 1), str(t), *(str(np.sort(ids[t, layer]).tolist()) for ids in (experts_TLK, predicted_TLK))]
        for layer in range(26)
        for t in range(len(experts_TLK))
    ]


def _write(path: Path, rows: Rows, terminator: str = "\r\n", bom: bool = False) -> Path:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator=terminator).writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + buffer.getvalue().encode())
    return path


def _import(source: Path) -> Trace:
    return importers.read("moe-beyond-csv", source)


@pytest.mark.parametrize("terminator", ["\r\n", "\n"])
@pytest.mark.parametrize("bom", [False, True])
def test_tokens_with_quotes_commas_and_line_breaks_survive(tmp_path: Path, terminator: str, bom: bool) -> None:
    experts = _experts(len(TOKENS))
    _write(tmp_path / "puffin" / "prompt_3_data.csv", _routed_rows(experts, TOKENS), terminator, bom)
    trace = _import(tmp_path / "puffin")
    assert trace.token_texts is not None
    assert trace.token_texts.decode() == TOKENS
    np.testing.assert_array_equal(trace.experts_TLK, experts)
    assert trace.prompt_ids == ("puffin/prompt_3",)
    assert trace.is_prefill_T.all()


def test_a_token_of_control_characters_is_no_row_end(tmp_path: Path) -> None:
    tokens = ["\r", "\n", "\r\n", "\0"]
    _write(tmp_path / "p_data.csv", _routed_rows(_experts(4), tokens))
    texts = _import(tmp_path).token_texts
    assert texts is not None
    assert texts.decode() == tokens


def test_an_unquoted_lone_quote_inside_a_token_is_text(tmp_path: Path) -> None:
    path = _write(tmp_path / "p_data.csv", _routed_rows(_experts(1), ["QUOTE"]))
    path.write_bytes(path.read_bytes().replace(b"QUOTE", 'Ġ"'.encode()))
    texts = _import(tmp_path).token_texts
    assert texts is not None
    assert texts.decode() == ['Ġ"']


def test_prompts_come_in_order_of_their_numbers_with_offsets(tmp_path: Path) -> None:
    for number, length in ((10, 3), (2, 1)):
        _write(tmp_path / f"prompt_{number}_data.csv", _routed_rows(_experts(length, number), TOKENS[:length]))
    trace = importers.read("moe-beyond-csv", tmp_path, domain="d", held_out=True, privacy="ids")
    assert trace.prompt_ids == ("d/prompt_2", "d/prompt_10")
    assert trace.prompt_offsets.tolist() == [0, 1, 4]
    assert trace.held_out_P.all()
    assert trace.token_texts is None
    np.testing.assert_array_equal(trace.experts_TLK[1:], _experts(3, 10))


def test_predictions_find_their_prompt_by_routing_whatever_their_number(tmp_path: Path) -> None:
    predicted = {}
    for number, other in ((1, 7), (2, 5)):
        experts, predicted[number] = _experts(4, number), _experts(4, 100 + number)
        _write(tmp_path / "formatted" / f"prompt_{number}_data_formatted.csv", _routed_rows(experts, TOKENS[:4]))
        answers = _predicted_rows(experts, predicted[number])
        _write(tmp_path / "predicted" / f"prompt_{other}_data_predicted.csv", answers)
    trace = _import(tmp_path)
    assert trace.predicted_TLK is not None
    expected = np.concatenate([np.sort(predicted[1], axis=2), np.sort(predicted[2], axis=2)])
    np.testing.assert_array_equal(trace.predicted_TLK, expected)


def test_the_public_repositorys_folder_names_and_editors_copies_are_understood(tmp_path: Path) -> None:
    experts = _experts(3)
    _write(tmp_path / "formatted_csvs" / "prompt_1_data_formatted.csv", _routed_rows(experts, TOKENS[:3]))
    _write(tmp_path / "predicted_csvs" / "prompt_9_data_predicted.csv", _predicted_rows(experts, _experts(3, 8)))
    copy = tmp_path / "formatted_csvs" / ".ipynb_checkpoints" / "prompt_1_data-checkpoint.csv"
    _write(copy, _routed_rows(experts, TOKENS[:3]))
    trace = _import(tmp_path)
    assert trace.num_prompts == 1
    assert trace.predicted_TLK is not None


def test_of_equal_routing_the_prediction_with_the_same_number_is_taken(tmp_path: Path) -> None:
    experts = _experts(2)
    for number in (1, 2):
        _write(tmp_path / "formatted" / f"prompt_{number}_data_formatted.csv", _routed_rows(experts, TOKENS[:2]))
        answers = _predicted_rows(experts, _experts(2, 50 + number))
        _write(tmp_path / "predicted" / f"prompt_{number}_data_predicted.csv", answers)
    predicted = _import(tmp_path).predicted_TLK
    assert predicted is not None
    np.testing.assert_array_equal(predicted[2:], np.sort(_experts(2, 52), axis=2))


def test_a_prompt_without_its_prediction_is_named(tmp_path: Path) -> None:
    _write(tmp_path / "formatted" / "prompt_1_data_formatted.csv", _routed_rows(_experts(2), TOKENS[:2]))
    _write(tmp_path / "predicted" / "prompt_1_data_predicted.csv", _predicted_rows(_experts(2, 1), _experts(2)))
    with pytest.raises(
        InputError, match=r"prompt_1_data_formatted\.csv: no file under predicted/ has the same routing"
    ):
        _import(tmp_path)


def _set(row: int, column: int, value: str) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        rows[row][column] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set(0, 3, "Experts"), "row 1: column 'Activated Expert IDs' is missing"),
        (_set(4, 3, "[1, 2, 3, 4, 5, 64]"), "row 5: expert id 64 in Activated Expert IDs"),
        (_set(4, 3, "[1, 2, 3, 4, 5]"), r"row 5: Activated Expert IDs is '\[1, 2, 3, 4, 5\]', expected a list of 6"),
        (_set(4, 3, "[1, 2, 3, 4, 5, 6, 7]"), "row 5: .* expected a list of 6 expert ids"),
        (_set(4, 3, "[1, 2, 3, 4, 5, -6]"), "row 5: .* expected a list of 6 expert ids"),
        (_set(4, 3, "[1, 2, 3, 4, 5, 5]"), "row 5: .* a router names an expert once"),
        (_set(4, 3, "[1, 2, 3, 4, 5, 6]\n[1, 2, 3, 4, 5, 6]"), "row 5: .* expected a list of 6 expert ids"),
        (_set(-1, 3, ""), "row 79: .* expected a list of 6 expert ids"),
        (_set(4, 0, "one"), "row 5: Layer ID is 'one', expected a whole number"),
        (_set(4, 0, "27"), "row 5: Layer ID 27, expected 1 to 26"),
        (_set(4, 0, "3"), "layer 2 has 2 rows, layer 1 has 3"),
        (_set(4, 2, "other"), "row 5: token 'other', layer 1 has"),
        (_set(4, 1, "1"), "several values of 'Batch Number'"),
        (lambda rows: rows[4].pop(), "row 5: 3 fields, expected 4"),
        (lambda rows: rows.pop(), "layer 26 has 2 rows, layer 1 has 3"),
        (lambda rows: rows.__delitem__(slice(4, 7)), "layer 2 is missing"),
        (lambda rows: rows.__delitem__(slice(1, None)), "no rows of data"),
    ],
)
def test_a_broken_file_is_one_line_with_file_and_row(
    tmp_path: Path, change: Callable[[Rows], object], message: str
) -> None:
    rows = _routed_rows(_experts(3), TOKENS[:3])
    change(rows)
    _write(tmp_path / "prompt_9_data.csv", rows)
    with pytest.raises(InputError, match=message) as caught:
        _import(tmp_path)
    assert "prompt_9_data.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"\xff\xfe\x00", "byte 0 is not UTF-8"),
        (b'Layer ID,Batch Number,Token,Activated Expert IDs\n1,0,"x,"[1]"\n', "row 2: "),
    ],
)
def test_bytes_that_are_no_csv_are_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "p.csv").write_bytes(data)
    with pytest.raises(InputError, match=message):
        _import(tmp_path)


def test_a_gap_in_the_positions_of_a_prediction_is_named(tmp_path: Path) -> None:
    experts = _experts(3)
    rows = _predicted_rows(experts, experts)
    rows[2][1] = "2"
    _write(tmp_path / "predicted" / "p_predicted.csv", rows)
    with pytest.raises(InputError, match=r"row 3: position 2 breaks the count"):
        _import(tmp_path)


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown trace format 'cvs'; expected one of .*moe-beyond-csv"):
        importers.read("cvs", tmp_path)


@given(data=st.binary(max_size=400) | st.text(alphabet='0123456789[], "\r\n\0LayerID', max_size=400).map(str.encode))
def test_any_bytes_are_a_trace_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    header = b"Layer ID,Batch Number,Token,Activated Expert IDs\n"
    for name, content in (("a.csv", data), ("b.csv", header + data)):
        (folder / name).write_bytes(content)
        try:
            trace = moe_beyond_csv.read(folder / name, None)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert trace.num_tokens > 0


@pytest.mark.parametrize(
    ("name", "prompts", "tokens"),
    [pytest.param("puffin", 1851, 177_471, marks=pytest.mark.slow), ("webglm", 50, 790)],
)
def test_the_published_archives_give_the_published_counts(name: str, prompts: int, tokens: int) -> None:
    archive = SHARED / f"{name}.tar.xz"
    if not archive.exists():
        pytest.skip(f"{archive.name}: the published traces are not beside the repository")
    trace = _import(archive)
    assert (trace.num_prompts, trace.num_tokens) == (prompts, tokens)
    assert (trace.predicted_TLK is not None) == (name == "webglm")
