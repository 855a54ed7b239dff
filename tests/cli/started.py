"""A command in a process of its own that Ctrl-C ends, also where the tests run in the background of a shell."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# what runs in the background of a shell ignores Ctrl-C
CODE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from moe_beyond.cli import main; main()"
)


def started(*words):
    """The process of a command, with pipes for what it prints."""
    return subprocess.Popen(
        [sys.executable, "-c", CODE, *map(str, words)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
