"""What is installed is what was resolved: every file has a hash, and releases that were malware cannot come in."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from scripts.sbom import locked

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_package_but_torch_has_hashes():
    packages = locked(LOCK)
    assert len(packages) == len(re.findall("==", LOCK)) > 200
    assert [name for name, (_, digests) in packages.items() if not digests] == ["torch"]


def test_the_lock_file_keeps_to_what_the_project_asks_for():
    packages = locked(LOCK)
    asked = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    for requirement in map(Requirement, asked):
        version = packages[requirement.name.lower().replace("_", "-")][0]
        assert requirement.specifier.contains(version), requirement


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_the_releases_of_lightning_that_were_malware_cannot_come_in(version):
    packages = locked(LOCK)
    assert version not in (packages["lightning"][0], packages["pytorch-lightning"][0])
    (asked,) = [line for line in map(Requirement, PROJECT["dependencies"]) if line.name == "lightning"]
    assert not asked.specifier.contains(version)


def test_every_known_finding_has_a_reason_and_is_passed_over():
    lines = (ROOT / ".ci/known-findings").read_text().splitlines()
    for line in lines:
        assert re.fullmatch(r"#.*|(GHSA|CVE|PYSEC)-[\w-]+ \S.{10,}", line), line
    planned = subprocess.run(["make", "-n", "audit"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (expression,) = re.findall(r"sed -n '(s/.*?/p)' \.ci/known-findings", planned)
    found = "# GHSA-0 none\nGHSA-aaaa-bbbb-cccc only on Windows\nCVE-2026-1 not called\n"
    done = subprocess.run(["sed", "-n", expression], input=found, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--ignore-vuln", "GHSA-aaaa-bbbb-cccc", "--ignore-vuln", "CVE-2026-1"]
    # a package that the registry does not know would be passed over without a word
    assert "--strict" in planned
