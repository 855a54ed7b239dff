"""Imports point downwards: tracking and reporting; training and tuning; predictor; data; traces; settings."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "moe_beyond"
FORBIDDEN = {
    "traces": ("data", "predictor", "simulator", "training", "tuning", "tracking", "reporting", "config"),
    "reference": ("predictor", "simulator", "training", "tuning", "tracking", "reporting", "config", "data"),
    "data": ("predictor", "simulator", "training", "tuning", "tracking", "reporting", "config"),
    "simulator": ("reference", "training", "tuning", "tracking", "reporting", "config"),
    "predictor": ("simulator", "training", "tuning", "tracking", "reporting", "config"),
    "reporting": ("tracking", "registry", "drift", "comparison"),
    "registry": ("training", "tuning", "tracking", "reporting", "config", "comparison"),
    "drift": ("training", "tuning", "tracking", "reporting", "config", "comparison"),
    "comparison": ("training", "tuning", "tracking"),
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_import_points_upwards(package):
    for path in (SOURCE / package).rglob("*.py"):
        for name in imported(path):
            for above in FORBIDDEN[package]:
                assert not f"{name}.".startswith(f"moe_beyond.{above}."), f"{path} imports {name}"


def test_only_tracking_imports_mlflow():
    for path in SOURCE.rglob("*.py"):
        if path.is_relative_to(SOURCE / "tracking"):
            continue
        assert not [name for name in imported(path) if name.split(".")[0] == "mlflow"], path


def test_simulator_and_runtime_know_no_torch():
    files = [*(SOURCE / "simulator").rglob("*.py"), SOURCE / "predictor/runtime.py", SOURCE / "predictor/base.py"]
    for path in [*files, SOURCE / "metrics.py", SOURCE / "data/tokens.py", SOURCE / "data/features.py"]:
        assert not [name for name in imported(path) if name.split(".")[0] in ("torch", "lightning")], path


def test_settings_import_only_pydantic_and_settings():
    for path in SOURCE.rglob("settings.py"):
        roots = {name.split(".")[0] for name in imported(path)}
        assert roots <= {"__future__", "typing", "pydantic", "moe_beyond"}, path
        assert all(name.endswith(".settings") for name in imported(path) if name.startswith("moe_beyond")), path
