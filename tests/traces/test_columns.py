"""A column is the same in memory and in a file, and takes no more memory than it may."""

import numpy as np
import pytest

from moe_beyond.traces import columns
from moe_beyond.traces.columns import Column, forget, memory_bytes, slices
from tests.traces.refusals import refused


@pytest.mark.parametrize("mib", ["1", "512"])
def test_it_holds_what_was_appended(monkeypatch, mib):
    monkeypatch.setenv(columns.VARIABLE, mib)
    parts = np.array_split(np.arange(600_000).reshape(-1, 3) % 251, [1, 1, 70_000])
    column = Column(np.uint8)
    for part in parts:
        column.append(part)
    whole = column.array()
    assert isinstance(whole, np.memmap) == (mib == "1")
    forget(whole)
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert whole.dtype == np.uint8


def test_a_part_of_another_shape_is_refused():
    column = Column(np.uint8)
    column.append(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="shape"):
        column.append(np.zeros((2, 4)))


def test_slices_cover_all_and_are_bounded(monkeypatch):
    monkeypatch.setenv(columns.VARIABLE, "1")
    found = list(slices(10_000, 100))
    assert [token for part in found for token in range(part.start, part.stop)] == list(range(10_000))
    assert max(part.stop - part.start for part in found) * 100 * 32 <= 2**20
    assert list(slices(2, 2**40)) == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize("given", ["", "0", "-1", "1.5", "x" * 200, "9" * 5000, "٣"])
def test_nonsense_is_one_line(monkeypatch, given):
    monkeypatch.setenv(columns.VARIABLE, given)
    refused(columns.VARIABLE, memory_bytes)
