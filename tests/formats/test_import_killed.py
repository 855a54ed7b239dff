"""An import that is killed at any moment leaves nothing half-written, and run again gives the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moe_beyond.formats.export import export
from moe_beyond.traces.schema import TokenTexts
from tests.traces.random_traces import random_trace

SCRIPT = """
import sys
from pathlib import Path
from moe_beyond.traces import importers, store
store.write_parquet(importers.read("moe-beyond-csv", Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    trace = random_trace([120] * 60, layers=26, experts=64, top_k=6)
    texts = TokenTexts.encode([f"word{i % 97}" for i in range(trace.num_tokens)])
    export("moe-beyond-csv", replace(trace, token_texts=texts), tmp_path / "source")

    def start(target: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path / "source", target])

    for _ in range(2):  # the second time, files and compiled modules are warm
        begun = time.monotonic()
        assert start(tmp_path / "whole.parquet").wait() == 0
        seconds = time.monotonic() - begun
    whole = (tmp_path / "whole.parquet").read_bytes()

    target = tmp_path / "out" / "a.parquet"
    killed = 0
    for moment in np.random.default_rng(0).uniform(0.2, 1.0, 20):
        process = start(target)
        time.sleep(moment * seconds)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        # the target is not there, or complete: a kill after the rename comes too late
        assert not target.exists() or target.read_bytes() == whole
        target.unlink(missing_ok=True)
    assert killed >= 10
    assert start(target).wait() == 0
    assert target.read_bytes() == whole
    # nothing of the killed processes is left beside it
    assert [path.name for path in target.parent.iterdir()] == ["a.parquet"]
