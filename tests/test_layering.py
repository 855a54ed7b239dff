"""Imports point downwards: the contracts of pyproject.toml, and three promises about libraries."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "moe_beyond"


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_the_import_contracts_hold():
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_only_tracking_and_the_registry_import_mlflow():
    importers = {path for path in SOURCE.rglob("*.py") if "mlflow" in {name.split(".")[0] for name in imported(path)}}
    owners = {path.relative_to(SOURCE).parts[0] for path in importers}
    assert owners == {"tracking", "registry"}


def test_what_runs_a_predictor_loads_no_torch():
    modules = ("predictor.runtime", "simulator.study.tables", "advisor.document", "evaluation.evaluate", "paper.caches")
    imports = ", ".join(f"moe_beyond.{module}" for module in modules)
    code = f"import sys, {imports}; sys.exit(str({{'torch', 'lightning', 'mlflow'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    # where the replay was never compiled, a line says before that it is now
    assert done.stderr.splitlines()[-1] == "set()"


def test_settings_import_only_pydantic_settings_and_how_they_are_read():
    for path in SOURCE.rglob("settings.py"):
        for name in imported(path):
            package = name.split(".")[0]
            assert package in {"__future__", "typing", "pydantic", "moe_beyond"} or path.parent == SOURCE, path
            allowed = (".settings", ".errors", ".documents", ".yaml_documents", ".masking")
            assert not name.startswith("moe_beyond") or name.endswith(allowed), path
