"""JSON, YAML and CSV: nothing twice, nothing deeper or larger than the limits."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_beyond.capture.prompts import read_prompts
from moe_beyond.devices import prefill
from moe_beyond.devices.calibrate import calibrate
from moe_beyond.devices.device import dump_device, load_device
from moe_beyond.devices.recordings import read_recording
from moe_beyond.documents import load_csv, load_json, read_plain, require_unpacked
from moe_beyond.formats import importers
from moe_beyond.formats.count_files import read_counts
from moe_beyond.formats.headers import read_sizes
from moe_beyond.formats.recognise import recognise
from moe_beyond.limits import limited
from moe_beyond.params import load_params
from moe_beyond.registry.drift import window
from moe_beyond.traces import store
from moe_beyond.yaml_documents import load_yaml
from tests.traces.refusals import refused

TWICE = [
    ('{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' is given twice in one object"),
    ("[" * 65 + "]" * 65, "more than 64 lists or objects within one another"),
    ('{"a": ' * 100_000, "more than 64 lists or objects"),
    ("[" + "7" * 401 + "]", "a number of more than 400 digits"),
    ("[1", "not valid JSON"),
]


@pytest.mark.parametrize(("text", "message"), TWICE)
def test_json_that_is_ambiguous_deep_or_broken_is_one_line(text, message):
    refused(f"x: {message}", load_json, text, "x")


def test_brackets_and_digits_in_strings_are_text():
    value = {"a": "[" * 500 + '"' + "7" * 500 + "\\", "b": ["{" * 90]}
    assert load_json('{"a": "' + "[" * 500 + '\\"' + "7" * 500 + '\\\\", "b": ["' + "{" * 90 + '"]}', "x") == value
    assert load_json("[" * 64 + "]" * 64, "x")
    with limited(depth=100):
        assert load_json("[" * 100 + "]" * 100, "x")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", ['\\"', '"', "\\", '","', "[],", "1" * 99 + ",", "{"])
def test_json_that_repeats_a_million_times_is_read_in_linear_time(part):
    for text in (part * 1_000_000, '"' + part * 1_000_000):
        refused("x: ", load_json, text[:5_000_000], "x")


WRONG_YAML = [
    ("a: 1\nb: {c: 1, c: 2}\n", "key 'c' is given twice"),
    ("a: 1\na: 2\n", "key 'a' is given twice"),
    ("1: a\n1.0: b\n", "given twice"),
    ("a: &x [1]\nb: [*x, *x]\n", "reference to another place"),
    ("a: " + "[" * 5000, "more than 64 values within one another"),
    ("a: " + "9" * 5000, "not valid YAML"),
    ("a: 2001-99-99", "not valid YAML"),
    ("? [1]\n: 2", "not valid YAML"),
    ("a: !!python/object:os.system x", "not valid YAML"),
    (b"a: \xff", "not valid YAML"),
    ("a: " + "x" * 2**20, "more than 1024 KiB of settings"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_YAML)
def test_yaml_that_is_ambiguous_deep_or_broken_is_one_line(text, message):
    refused(message, load_yaml, text, "x.yaml")


def test_parameters_and_devices_with_a_key_twice_or_without_end_are_refused(tmp_path):
    (tmp_path / "params.yaml").write_text("seed: 1\nseed: 2\n")
    refused("key 'seed' is given twice", load_params, tmp_path / "params.yaml")
    path, whole = tmp_path / "d.yaml", dump_device(load_device("phone_ufs"))
    path.write_text(whole + "setup_us: 5\n")
    refused("key 'setup_us' is given twice", load_device, str(path))
    for value in (".inf", ".nan", "1e999"):
        lines = [f"link_gb_per_s: {value}" if line.startswith("link_gb_per_s") else line for line in whole.splitlines()]
        path.write_text("\n".join(lines))
        refused("link_gb_per_s: Input should be a", load_device, str(path))


def test_a_column_twice_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("# a comment\nread_bytes,wall_ms, wall_ms\n1,2,3\n")
    for read in (load_csv, read_recording, prefill.read_prompts, lambda path: calibrate(path, 10**9, "x")):
        refused("column 'wall_ms' is there twice", read, path)
    path.write_text("id,prompt,id\na,b,c\n")
    refused("column 'id' is there twice", read_prompts, path)


READERS = {
    "import": lambda path: importers.read("mbolt", path),
    "auto": recognise,
    "counts": lambda path: read_counts("mbolt-heat", path),
    "imatrix": lambda path: read_counts("imatrix", path),
    "header": read_sizes,
    "prompts": read_prompts,
    "params": load_params,
    "device": lambda path: load_device(str(path)),
    "recording": read_recording,
    "tokens": lambda path: calibrate(path, 10**9, "x"),
    "prefill": prefill.read_prompts,
    "drift": window.read_counts,
    "trace": store.read_parquet,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_refused_before_it_is_opened(tmp_path, name):
    path = tmp_path / "x.yaml"
    os.mkfifo(path)
    refused("a pipe, socket or device; give a plain file", READERS[name], path)


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(2**40)
    refused("1,099,511,627,776 bytes, more than 256 MiB", read_plain, path)


def unpacked(path):
    with path.open("rb") as file:
        return require_unpacked(file, str(path))


@pytest.mark.parametrize("num_columns", [1, 40])
def test_values_of_parquet_columns_are_those_that_pyarrow_counts(tmp_path, num_columns):
    rows = [{f"c{n}": [[n] * (row % 3), None, [1.5]] for n in range(num_columns)} for row in range(50)]
    rows = [row | {"text": "x" * 300, "flag": True, "none": None} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=7, write_page_index=True)
    footer = pq.read_metadata(tmp_path / "x.parquet")
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    expected = [[group.column(n).num_values for n in range(group.num_columns)] for group in groups]
    assert unpacked(tmp_path / "x.parquet") == expected


def test_a_parquet_file_of_no_rows_has_no_values(tmp_path):
    pq.write_table(pa.table({"a": pa.array([], pa.int8())}), tmp_path / "x.parquet")
    assert sum(map(sum, unpacked(tmp_path / "x.parquet"))) == 0


@pytest.mark.parametrize("length", [0, 1, 7, 8, 40])
def test_a_footer_that_is_none_is_one_line(tmp_path, length):
    (tmp_path / "x").write_bytes(b"\xff" * length + b"\x28\0\0\0PAR1")
    refused("not readable as Parquet", unpacked, tmp_path / "x")
