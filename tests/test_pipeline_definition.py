"""dvc.yaml, stage scripts and params.yaml tell one story: deps are exactly what a stage imports, in both directions."""

import ast
import re
import subprocess
from pathlib import Path

import grimp
import pytest
import yaml

from moe_beyond.params import Params
from moe_beyond.settings import STAGES
from moe_beyond.simulator.study.settings import ReplaySettings
from moe_beyond.tracking.dvc import read_stage

ROOT = Path(__file__).parents[1]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
SHARED_SECTIONS = {"seed", "numerics", "traces"}
DATA_OF_MODULES = {
    "moe_beyond.devices.device": "src/moe_beyond/devices/profiles",
    "moe_beyond.reporting.page": "src/moe_beyond/reporting/templates",
    "moe_beyond.devices.errors": "src/moe_beyond/devices/errors.csv",
    "moe_beyond.advisor.pinning_table": "src/moe_beyond/advisor/pinning.csv",
}
REST = [stage for stage in STAGES if not DVC[stage].get("always_changed")]


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("moe_beyond", cache_dir=None)


def module_file(name):
    path = ROOT / "src" / Path(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def has_code(file):
    return any(not isinstance(node, ast.Expr) for node in ast.parse(file.read_text()).body)


def imported(graph, stage):
    """Files that the stage's script imports, directly or not."""
    named = set()
    for node in ast.walk(ast.parse((ROOT / "stages" / f"{stage}.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            named |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    named &= graph.modules
    reached = named.union(*(graph.find_upstream_modules(name) for name in named))
    # Python runs the `__init__` of every package on the way
    reached |= {name.rsplit(".", depth)[0] for name in reached for depth in range(1, name.count(".") + 1)}
    reached = reached.union(*(graph.find_upstream_modules(name) for name in reached))
    data = {ROOT / folder for module, folder in DATA_OF_MODULES.items() if module in reached}
    return {file for file in map(module_file, reached) if has_code(file)} | {
        file for path in data for file in (path, *path.rglob("*")) if file.is_file()
    }


@pytest.mark.parametrize("stage", REST)
def test_the_source_files_among_the_deps_are_those_that_the_stage_imports(graph, stage):
    listed = set()
    for dep in DVC[stage]["deps"]:
        if dep.startswith("src/"):
            path = ROOT / dep
            files = [path] if path.is_file() else [file for file in path.rglob("*") if "__pycache__" not in file.parts]
            assert files, dep
            listed |= {file for file in files if file.is_file() and (file.suffix != ".py" or has_code(file))}
    assert listed == imported(graph, stage)
    assert f"stages/{stage}.py" in DVC[stage]["deps"]


def test_stages_scripts_and_sections_have_the_same_names():
    assert tuple(DVC) == STAGES
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} == set(STAGES)
    assert set(yaml.safe_load((ROOT / "params.yaml").read_text())) - SHARED_SECTIONS == set(STAGES)
    assert set(Params.model_fields) - SHARED_SECTIONS == set(STAGES)


@pytest.mark.parametrize("stage", REST)
def test_the_params_of_a_stage_are_the_sections_that_it_reads(stage):
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text())
    (params,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    read = {ast.unparse(node.target) for node in params.body if isinstance(node, ast.AnnAssign)}
    declared = {param.split(".")[0] for param in read_stage(ROOT / "dvc.yaml", stage).params} - {"reports/tune/best"}
    assert declared - {"numerics"} == read
    # which kernels compute decides the last digits of whatever uses torch, numpy or ONNX
    assert ("numerics" in declared) == (
        stage in {"reference", "extract", "tune", "train", "export", "simulate", "verify"}
    )


def test_the_search_reads_the_rules_of_replay_and_nothing_else_of_simulate():
    listed = {param.removeprefix("simulate.") for param in DVC["tune"]["params"] if "simulate" in str(param)}
    # DVC watches a key only where params.yaml has it
    assert listed == set(ReplaySettings.model_fields)
    assert listed <= set(yaml.safe_load((ROOT / "params.yaml").read_text())["simulate"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_writes_its_tables_metrics_and_receipt_and_dvcs_run_cache_takes_it(stage):
    text = "\n".join([(ROOT / "stages" / f"{stage}.py").read_text()])
    outs = DVC[stage].get("outs", [])
    if stage == "publish":
        # what it does depends on a registry that DVC does not see: no run cache
        assert DVC[stage]["always_changed"] and not outs
        return
    assert f"reports/{stage}/run.json" in outs
    assert ("write_tables" in text) == (f"reports/{stage}/tables" in outs)
    # DVC leaves a stage out of its run cache, without a word, where an out, metrics and plots apart, is not cached
    assert all(isinstance(out, str) for out in outs)


def test_a_lock_in_git_promises_nothing_that_a_clone_cannot_fetch():
    """DVC ends an experiment in a fresh clone with an error where the lock names a folder that is nowhere."""
    held = subprocess.run(["git", "ls-files", "dvc.lock"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not held.stdout or "[remote " in (ROOT / ".dvc/config").read_text(), "commit it with a remote of its outs"


def test_one_file_of_metrics_is_compared_between_revisions():
    metrics = {path for stage in DVC.values() for entry in stage.get("metrics", []) for path in entry}
    assert metrics == {"reports/simulate/metrics.json"}


def test_what_chooses_sees_no_prompts_of_reported_figures():
    for stage in ("tune", "train"):
        assert not [dep for dep in DVC[stage]["deps"] if re.search(r"test|gate|^data/splits$", dep)]
    for stage in ("export", "simulate", "verify", "report"):
        assert not [dep for dep in DVC[stage]["deps"] if dep.startswith("data/splits/gate")]
    assert "SPLITS" not in (ROOT / "stages/tune.py").read_text() + (ROOT / "stages/train.py").read_text()


def test_a_stage_script_is_short_and_knows_nothing_of_mlflow():
    for path in (ROOT / "stages").glob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 60, path
        assert "import mlflow" not in text
        assert path.stem == "publish" or "moe_beyond.tracking" not in text
