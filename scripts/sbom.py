"""What a release needs at run time, as a software bill of materials: CycloneDX 1.6, JSON.

Versions and sha256 of files are those of requirements.lock; licences and who needs whom come from this environment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = "moe-beyond"


Lock = Mapping[str, tuple[str, Sequence[str]]]
"""Version, and sha256 of each file, by the package's name."""


class DiffersError(RuntimeError):
    """This environment is not what the lock file says; the message names the package."""


def locked(text: str) -> Lock:
    """The packages that a lock file names; torch has no hashes."""
    entries = re.findall(r"^([\w.-]+)==([^\s\\]+)((?:[ \\\n]+--hash=sha256:[0-9a-f]{64})*)", text, re.MULTILINE)
    return {
        canonicalize_name(name): (version, re.findall(r"sha256:([0-9a-f]{64})", hashes))
        for name, version, hashes in entries
    }


def needed(project: str) -> dict[str, list[str]]:
    """The packages that a project needs at run time, itself first: the names that each needs, in order.

    Raises:
        DiffersError: One of them is not installed.
    """
    graph: dict[str, set[str]] = {}
    waiting = [(project, "")]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        try:
            lines = distribution(name).requires or []
        except PackageNotFoundError as error:
            raise DiffersError(f"{name} is needed and not installed; run make .venv/.ok") from error
        below = graph.setdefault(name, set())
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                other = canonicalize_name(requirement.name)
                below.add(other)
                new = {(other, ""), *((other, wanted) for wanted in requirement.extras)} - seen
                seen |= new
                waiting += sorted(new)
    return {name: sorted(below - {name}) for name, below in sorted(graph.items(), key=lambda item: item[0] != project)}


def document(lock: Lock, graph: Mapping[str, Sequence[str]], files: Mapping[str, str], when: str) -> dict[str, Any]:
    """The bill of materials.

    Args:
        lock: As `locked` has it.
        graph: As `needed` has it, the project first.
        files: sha256 of the release's own files, by name.
        when: Time of the commit, ISO 8601.

    Raises:
        DiffersError: A package is not in the lock file, or installed in another version.
    """
    project, *others = graph
    components = {name: _component(name, *_version(name, lock)) for name in sorted(others)}
    own = _component(project, distribution(project).version, [])
    own |= {
        "type": "application",
        "externalReferences": [_file(name, [digest]) for name, digest in sorted(files.items())],
    }
    references = {name: component["bom-ref"] for name, component in (components | {project: own}).items()}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"timestamp": when, "component": own},
        "components": list(components.values()),
        "dependencies": [
            {"ref": references[name], "dependsOn": [references[other] for other in graph[name]]} for name in references
        ],
    }


def _version(name: str, lock: Lock) -> tuple[str, Sequence[str]]:
    if name not in lock:
        raise DiffersError(f"{name} is needed and not in requirements.lock; run make lock")
    installed = distribution(name).version
    if Version(installed).public != Version(lock[name][0]).public:
        raise DiffersError(
            f"{name} {installed} is installed, requirements.lock has {lock[name][0]}; run make .venv/.ok"
        )
    return lock[name]


def _component(name: str, version: str, digests: Sequence[str]) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version}"
    about = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    return about | {"licenses": _licenses(name)} | ({"externalReferences": [_file(purl, digests)]} if digests else {})


def _file(url: str, digests: Sequence[str]) -> dict[str, Any]:
    """Files of one release: which of them is installed depends on the machine."""
    return {"type": "distribution", "url": url, "hashes": [{"alg": "SHA-256", "content": digest} for digest in digests]}


def _licenses(name: str) -> list[dict[str, Any]]:
    about = distribution(name).metadata
    if "License-Expression" in about:
        return [{"expression": about["License-Expression"]}]
    known = [line.split(" :: ")[-1] for line in about.get_all("Classifier", []) if line.startswith("License :: ")]
    if not known and "License" in about:
        known = [line.strip()[:80] for line in about["License"].strip().splitlines()[:1]]
    return [{"license": {"name": text}} for text in known]
