"""The bill of materials of a release says what is installed at run time, as the lock file has it."""

import hashlib
import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from scripts.release import release
from scripts.sbom import PROJECT, DiffersError, document, locked, needed

ROOT = Path(__file__).parents[2]
LOCK = locked((ROOT / "requirements.lock").read_text())
DIGEST = "0" * 64


def test_a_lock_file_is_read_with_its_hashes():
    text = f"# one==0\nOne.two==1.0 \\\n    --hash=sha256:{DIGEST} \\\n    --hash=sha256:{'1' * 64}\ntorch==2.0\n"
    assert locked(text) == {"one-two": ("1.0", [DIGEST, "1" * 64]), "torch": ("2.0", [])}


def test_it_names_what_is_needed_at_run_time_and_no_tool_of_development():
    graph = needed(PROJECT)
    assert next(iter(graph)) == PROJECT
    assert {"torch", "mlflow", "numpy", "sqlalchemy"} <= set(graph)
    assert not {"pytest", "ruff", "ray", "pip-audit"} & set(graph)
    assert all(other in graph for below in graph.values() for other in below)


def test_components_have_version_hashes_licence_and_what_they_need():
    bill = document(LOCK, needed(PROJECT), {"a.whl": DIGEST}, "2026-01-01T00:00:00+00:00")
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    components = {component["name"]: component for component in bill["components"]}
    assert components["mlflow"]["purl"] == f"pkg:pypi/mlflow@{LOCK['mlflow'][0]}"
    (files,) = components["mlflow"]["externalReferences"]
    assert [entry["content"] for entry in files["hashes"]] == LOCK["mlflow"][1]
    assert [name for name, entry in components.items() if "externalReferences" not in entry] == ["torch"]
    assert components["polars"]["licenses"]
    (own,) = bill["metadata"]["component"]["externalReferences"]
    assert own == {"type": "distribution", "url": "a.whl", "hashes": [{"alg": "SHA-256", "content": DIGEST}]}
    references = {component["bom-ref"] for component in (*components.values(), bill["metadata"]["component"])}
    assert {entry["ref"] for entry in bill["dependencies"]} == references
    assert all(set(entry["dependsOn"]) <= references for entry in bill["dependencies"])


def test_an_environment_that_is_not_the_lock_files_is_refused():
    graph = {PROJECT: ["numpy"], "numpy": []}
    with pytest.raises(DiffersError, match=r"numpy is needed and not in requirements\.lock"):
        document({}, graph, {}, "")
    with pytest.raises(DiffersError, match=rf"numpy {version('numpy')} is installed, requirements.lock has 1.0;"):
        document({"numpy": ("1.0", [])}, graph, {}, "")
    with pytest.raises(DiffersError, match="no-such-package is needed and not installed"):
        needed("no-such-package")
    # a CPU build of torch is the same release
    document({"torch": (Version(version("torch")).public, [])}, {PROJECT: ["torch"], "torch": []}, {}, "")


def git(folder, *words):
    subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def committed(tmp_path):
    """A small project, committed, in a folder whose name a shell would take apart."""
    root = tmp_path / "a b;$(c)"
    (root / "src/moe_beyond").mkdir(parents=True)
    (root / "src/moe_beyond/__init__.py").touch()
    (root / ".gitignore").write_text("*.egg-info\nbuild/\n")
    (root / "requirements.lock").write_text((ROOT / "requirements.lock").read_text())
    project = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    project += '[project]\nname = "moe-beyond"\nversion = "0.1.0"\n[tool.setuptools.packages.find]\nwhere = ["src"]\n'
    (root / "pyproject.toml").write_text(project)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all")
    return root


def test_a_release_has_wheel_sdist_bill_and_the_sums_of_all(committed):
    out = committed / "build/release"
    release(committed, out)
    sums = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    names = {"moe_beyond-0.1.0-py3-none-any.whl", "moe_beyond-0.1.0.tar.gz", "moe-beyond.cdx.json"}
    assert set(sums) == names == {path.name for path in out.iterdir()} - {"SHA256SUMS"}
    assert all(hashlib.sha256((out / name).read_bytes()).hexdigest() == digest for name, digest in sums.items())
    bill = json.loads((out / "moe-beyond.cdx.json").read_text())
    own = {entry["url"]: entry["hashes"][0]["content"] for entry in bill["metadata"]["component"]["externalReferences"]}
    assert own == {name: digest for name, digest in sums.items() if name != "moe-beyond.cdx.json"}


def test_a_release_is_made_of_a_commit_alone(committed):
    (committed / "src/moe_beyond/more.py").touch()
    with pytest.raises(DiffersError, match=r"not committed: \?\? src/moe_beyond/more.py"):
        release(committed, committed / "build/release")
    assert not (committed / "build").exists()
