"""Training in two processes: each window once an epoch, the same result within noise."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from moe_beyond.errors import InputError
from moe_beyond.training.datamodule import LengthBatches
from moe_beyond.training.distributed import is_further_process
from tests.training.ddp_case import EPOCHS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("num_windows", "batch_size", "num_ranks"), [(20, 8, 1), (37, 8, 2), (33, 8, 3), (9, 4, 4)])
def test_ranks_share_every_batch_and_make_as_many_steps(num_windows, batch_size, num_ranks):
    windows = [(start, start + 1 + start % 7) for start in range(num_windows)]
    ranks = (
        LengthBatches(windows, batch_size, np.random.default_rng(3), rank=rank, num_ranks=num_ranks)
        for rank in range(num_ranks)
    )
    steps = list(zip(*ranks, strict=True))
    assert all(all(step) for step in steps)
    assert sorted(i for step in steps for share in step for i in share) == list(range(num_windows))
    sizes = sorted(sum(map(len, step)) for step in steps)
    # the last batch is smaller, or the one before larger
    assert set(sizes[1:-1]) <= {batch_size}
    assert sizes[-1] < batch_size + num_ranks


def test_more_processes_than_windows_in_a_batch_are_refused():
    with pytest.raises(InputError, match=r"train.batch_size: 2 windows of 20 for 3 processes"):
        LengthBatches([(0, 1)] * 20, 2, np.random.default_rng(0), num_ranks=3)


def test_launchers_mark_the_first_process(monkeypatch):
    for environment, is_further in (({}, False), ({"LOCAL_RANK": "0"}, False), ({"NODE_RANK": "1"}, True)):
        monkeypatch.setattr(os, "environ", environment)
        assert is_further_process() == is_further


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_see_each_window_once_with_the_same_result(tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    for devices in "12":
        (tmp_path / devices).mkdir()
        command = [sys.executable, ROOT / "tests/training/ddp_case.py", tmp_path / devices, devices]
        subprocess.run(command, env=environment, check=True, cwd=ROOT, timeout=400)
    one, two = (json.loads((tmp_path / devices / "metrics.json").read_text()) for devices in "12")
    # the mean over processes of means over their windows is not quite the mean over all windows
    assert two["validation_recall_at_k"] == pytest.approx(one["validation_recall_at_k"], abs=0.05)
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=0.05)
    for split in (True, False):
        counts = [tokens_seen(tmp_path / devices, split) for devices in "12"]
        assert counts[0] == counts[1]
        assert set(counts[1].values()) == {EPOCHS}


def tokens_seen(folder, of_training):
    """How often each token was in a batch, over all processes."""
    counts = Counter()
    for train_tokens, seen in (json.loads(path.read_text()) for path in folder.glob("seen-*.json")):
        for tokens, windows in seen:
            if (tokens == train_tokens) == of_training:
                counts.update(token for start, end in windows for token in range(start, end))
    return counts
