"""`.ci/retrain` shows no password of a remote, whatever DVC says of it, and ends as DVC does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
REMOTE = "https://user:planted@host/x?token=planted"
DVC = """#!/usr/bin/env bash
case "$1 $2" in
"remote add") mkdir -p .dvc && echo "url = ${!#}" > .dvc/config.local ;;
"remote list") echo retrain ;;
*)
    echo "ran $1"
    echo "ERROR: 401, message='Unauthorized', url='$REMOTE'" >&2
    [ "$1" != push ]
    ;;
esac
"""


def test_what_dvc_says_of_a_remote_is_masked_and_its_status_kept(tmp_path):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/retrain", tmp_path / ".ci/retrain")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "dvc").write_text(DVC)
    (programs / "dvc").chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src"), "REMOTE": REMOTE}
    done = subprocess.run(
        [tmp_path / ".ci/retrain"], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 1
    lines = [line for line in done.stdout.splitlines() if line.startswith("ran ")]
    assert lines == ["ran pull", "ran repro", "ran push"]
    assert done.stderr.count("401") == 3
    assert "planted" not in done.stdout + done.stderr
    assert "planted" in (tmp_path / ".dvc/config.local").read_text()
    assert (tmp_path / ".dvc/config.local").stat().st_mode & 0o777 == 0o600
