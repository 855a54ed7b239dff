"""Published traces beside the repository, and recordings of BigMoeOnEdge on a phone as events."""

import pytest

from benchmarks.golden.recordings import TRACES, phone_run


def shared(*parts):
    """A file of published traces beside the repository; skips the test where it is absent."""
    path = TRACES.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"published traces are not there: {path}")
    return path


def recording(name):
    """All that was recorded of one model on the phone."""
    return phone_run(shared("bigmoe-on-edge"), name)
