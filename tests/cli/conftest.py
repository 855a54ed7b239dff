"""A trace to run commands on."""

import pytest

from moe_beyond.traces import store
from tests.traces_of_chance import chance_trace


@pytest.fixture
def trace_file(tmp_path):
    store.write_parquet(chance_trace(16), tmp_path / "trace.parquet")
    return tmp_path / "trace.parquet"
