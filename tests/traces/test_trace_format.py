"""The written specification says what the code does."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from moe_beyond.formats import export, importers
from moe_beyond.traces import store
from moe_beyond.traces.schema import SCHEMA_VERSION, TraceMetadata
from tests.traces.test_store import full_trace

TEXT = (Path(__file__).parents[2] / "docs" / "trace-format.md").read_text(encoding="utf-8")


def _first_cells(heading):
    section = TEXT.split(heading, 1)[1].split("\n#", 1)[0]
    cells = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_version_columns_and_metadata_are_all_specified(tmp_path):
    assert TEXT.startswith(f"# The trace format, version {SCHEMA_VERSION}\n")
    store.write_parquet(full_trace([3, 2]), tmp_path / "a.parquet")
    assert set(pq.read_schema(tmp_path / "a.parquet").names) == _first_cells("## Published form")
    assert set(TraceMetadata.model_fields) == _first_cells("### Metadata")


def test_files_of_the_working_form_are_all_specified(tmp_path):
    store.write_working(full_trace([3, 2]), tmp_path / "working")
    assert {path.name for path in (tmp_path / "working").iterdir()} == _first_cells("## Working form")


def test_every_importer_and_exporter_is_named():
    assert set(importers.FORMATS) == _first_cells("## Published traces of others")
    assert all(f"`{name}`" in TEXT for name in export.FORMATS)


def test_the_specified_reshape_gives_a_prompt_back(tmp_path):
    trace = full_trace([3, 2])
    store.write_parquet(trace, tmp_path / "a.parquet")
    code = re.findall(r"```python\n(meta = .*?)```", TEXT, re.DOTALL)[0]
    names = {"table": pq.read_table(tmp_path / "a.parquet"), "p": 1, "np": np, "json": __import__("json")}
    exec(code, names)  # noqa: S102 - the specification's own example
    np.testing.assert_array_equal(names["experts"], trace.experts_TLK[3:])
    assert len(fields(trace)) == 11  # a new field needs a line in the specification
