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


def test_all_columns_metadata_files_formats_and_the_reshape_are_specified(tmp_path):
    assert TEXT.startswith(f"# The trace format, version {SCHEMA_VERSION}\n")
    trace = full_trace([3, 2])
    store.write_parquet(trace, tmp_path / "a.parquet")
    store.write_working(trace, tmp_path / "working")
    assert set(pq.read_schema(tmp_path / "a.parquet").names) == _first_cells("## Published form")
    assert {path.name for path in (tmp_path / "working").iterdir()} == _first_cells("## Working form")
    assert set(TraceMetadata.model_fields) == _first_cells("### Metadata")
    assert set(importers.FORMATS) == _first_cells("## Published traces of others")
    assert all(f"`{name}`" in TEXT for name in export.FORMATS)
    code = re.findall(r"```python\n(meta = .*?)```", TEXT, re.DOTALL)[0]
    names = {"table": pq.read_table(tmp_path / "a.parquet"), "p": 1, "np": np, "json": __import__("json")}
    exec(code, names)  # noqa: S102 - the specification's own example
    np.testing.assert_array_equal(names["experts"], trace.experts_TLK[3:])
    assert len(fields(trace)) == 12  # a new field needs a line in the specification
