"""Two pipelines at once in one checkout: DVC holds the second one back and says who is there."""

import os
import subprocess
import sys
import time

import pytest

STAGE = """
stages:
  waiting:
    cmd: touch started && while [ ! -e go ]; do sleep 0.1; done && touch out
    outs: [out]
"""


@pytest.mark.slow
def test_the_second_repro_names_the_file_and_the_process_that_holds_it(tmp_path):
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    dvc = [sys.executable, "-m", "dvc"]
    (tmp_path / "dvc.yaml").write_text(STAGE)
    subprocess.run([*dvc, "init", "-q", "--no-scm"], cwd=tmp_path, env=environment, check=True)
    with subprocess.Popen([*dvc, "repro", "-q"], cwd=tmp_path, env=environment) as first:
        deadline = time.monotonic() + 120
        while not (tmp_path / "started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        second = subprocess.run(
            [*dvc, "repro"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        (tmp_path / "go").touch()
        assert first.wait(120) == 0
    assert second.returncode != 0
    assert f"out' is busy, it is being blocked by:\n  (PID {first.pid})" in second.stderr
    assert (tmp_path / "out").exists()
