"""Compiled code: never that of a former engine."""

import subprocess
import sys
from pathlib import Path
from shutil import copytree

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from moe_beyond.simulator.jit import compiled
from moe_beyond.simulator.engine.usage import doubled

@compiled()
def quadrupled(value):
    return doubled(doubled(value))

print(quadrupled(3))
"""
FUNCTION = """

@compiled()
def doubled(value):
    return {} * value
"""


def test_a_function_that_calls_one_of_a_changed_file_is_compiled_anew(tmp_path):
    package = Path(__file__).parents[2] / "src" / "moe_beyond"
    copytree(package, tmp_path / "moe_beyond", ignore=lambda *_: {"__pycache__"})
    (tmp_path / "script.py").write_text(SCRIPT)
    usage = tmp_path / "moe_beyond" / "simulator" / "engine" / "usage.py"
    source, printed = usage.read_text(), []
    for factor in (2, 2, 5):
        usage.write_text(source + FUNCTION.format(factor))
        command = [sys.executable, tmp_path / "script.py", tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        printed.append(int(done.stdout))
    assert printed == [12, 12, 75]
