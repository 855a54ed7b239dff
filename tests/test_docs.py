import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def generator():
    return runpy.run_path(str(ROOT / "docs/generate.py"))


def test_the_list_of_parameters_is_current():
    assert (ROOT / "docs/parameters.md").read_text() == generator()["parameters"](), "run `make docs`"


def test_every_file_and_command_that_the_readme_names_exists():
    readme = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\((docs/[^)]+)\)", readme):
        assert (ROOT / path).exists(), path
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", readme)) <= targets
