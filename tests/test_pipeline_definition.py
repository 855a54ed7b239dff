"""dvc.yaml, stage scripts and params.yaml tell one story, and a change of code reruns the stages that use it."""

import ast
from pathlib import Path

import pytest
import yaml

from moe_beyond.settings import STAGES
from moe_beyond.tracking.dvc import read_stage

ROOT = Path(__file__).parents[1]
SHARED_SECTIONS = {"seed", "traces"}
# how runs are tracked and parameters parsed does not change what a stage computes
NO_DEPENDENCY = {
    "moe_beyond",
    "moe_beyond.params",
    "moe_beyond.tracking.dvc",
    "moe_beyond.errors",
    "moe_beyond.files",
    "moe_beyond.settings",
    "moe_beyond.tracking",
}


def module_file(name):
    path = ROOT / "src" / Path(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(path):
    """Modules of this project that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {name for name in names if name.startswith("moe_beyond") and module_file(name).exists()}
    return found


def reached(stage):
    """Every module that the stage's script reaches, but for those that cannot change its outs."""
    todo, seen = imports(ROOT / "stages" / f"{stage}.py"), set()
    while todo:
        name = todo.pop()
        if name in seen or any(name == skip or name.startswith(f"{skip}.tracking") for skip in NO_DEPENDENCY):
            continue
        if name.startswith("moe_beyond.tracking"):
            continue
        seen.add(name)
        todo |= imports(module_file(name))
    return seen


def test_stages_scripts_and_sections_have_the_same_names():
    stages = tuple(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    sections = set(yaml.safe_load((ROOT / "params.yaml").read_text()))
    assert stages == STAGES
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} == set(STAGES)
    assert sections - SHARED_SECTIONS == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_it_uses_and_on_its_section(stage):
    declared = read_stage(ROOT / "dvc.yaml", stage)
    assert f"stages/{stage}.py" in declared.deps
    assert stage in declared.params
    assert f"reports/{stage}/run.json" in declared.outs
    assert f"reports/{stage}/metrics.json" in declared.outs or stage == "report"
    for name in reached(stage):
        # `settings.py` files only parse: a changed value shows in params.yaml
        if name.endswith(".settings"):
            continue
        file = module_file(name).relative_to(ROOT).as_posix()
        package_marker = file.endswith("__init__.py")
        covered = any(file == dep or file.startswith(f"{dep}/") for dep in declared.deps)
        assert covered or package_marker, f"{stage} uses {file}, which is not among its deps in dvc.yaml"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_only_sections_it_declares(stage):
    text = (ROOT / "stages" / f"{stage}.py").read_text()
    used = {
        node.attr
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and (
            (isinstance(node.value, ast.Attribute) and node.value.attr == "params")
            or (isinstance(node.value, ast.Name) and node.value.id == "params")
        )
    } - {"model_dump"}
    declared = {param.split(".")[0] for param in read_stage(ROOT / "dvc.yaml", stage).params}
    assert used <= declared


@pytest.mark.parametrize("stage", STAGES)
def test_dvcs_run_cache_takes_every_stage(stage):
    """It leaves out, without a word, a stage with an out that is neither metric nor plot and not in DVC's cache."""
    outs = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage].get("outs", [])
    assert outs
    for out in outs:
        options = {} if isinstance(out, str) else next(iter(out.values()))
        assert options.get("cache", True), out


def test_tuning_and_training_cannot_see_a_test_split():
    for stage in ("tune", "train"):
        deps = read_stage(ROOT / "dvc.yaml", stage).deps
        assert not [dep for dep in deps if "test" in dep or dep == "data/splits"]


def test_a_stage_script_is_short_and_imports_no_mlflow():
    for path in (ROOT / "stages").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path
        assert "import mlflow" not in path.read_text()
