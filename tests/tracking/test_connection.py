"""Finding MLflow, from several processes at once."""

import subprocess
import sys

OPEN = """
import sys, time
from pathlib import Path
from moe_beyond.tracking.connection import connect
while not Path("go").exists():
    time.sleep(0.01)
print(connect(Path.cwd()).experiment_id())
"""


def test_processes_that_start_together_make_one_database(project):
    started = [
        subprocess.Popen([sys.executable, "-c", OPEN], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    (project / "go").touch()
    ends = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ends
    assert {out for out, _ in ends} == {b"1\n"}
