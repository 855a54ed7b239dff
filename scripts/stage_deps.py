"""Writes into dvc.yaml the source files that each stage imports, no more and no less.

    python scripts/stage_deps.py

A folder stands for all of its files where a stage imports all of them; files that hold no code, such as most
`__init__.py`, are not listed. A test compares the result with the import graph that another library builds.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "moe_beyond"
READ_AT_RUN_TIME = {
    "advisor/pinning_table.py": "advisor/pinning.csv",
    "devices/device.py": "devices/profiles",
    "devices/errors.py": "devices/errors.csv",
    "reporting/page.py": "reporting/templates",
}
"""Files other than Python that a module reads."""


def main() -> None:
    """Rewrite dvc.yaml."""
    path = ROOT / "dvc.yaml"
    path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")


def rewritten(text: str) -> str:
    """dvc.yaml with the deps that are source files replaced."""
    lines, stage = [], ""
    always = {name for name, declared in yaml.safe_load(text)["stages"].items() if declared.get("always_changed")}
    for line in text.splitlines():
        if match := re.match(r"  (\w+):$", line):
            stage = match[1]
        if re.match(r"      - (src|stages)/", line):
            continue
        lines.append(line)
        if line == "    deps:":
            lines.append(f"      - stages/{stage}.py")
            if stage not in always:  # it runs whatever has changed
                lines += [f"      - {entry}" for entry in entries(stage)]
    return "\n".join(lines) + "\n"


def entries(stage: str) -> list[str]:
    """What a stage imports, folders where it imports all of them, paths from the project's root."""
    imported = closure(ROOT / "stages" / f"{stage}.py")
    files = {file for file in imported if holds_code(file)}
    extra = [PACKAGE / data for module, data in READ_AT_RUN_TIME.items() if PACKAGE / module in files]
    found = [*_collapsed(PACKAGE, files), *extra]
    whole = {path for path in found if path.is_dir()}
    kept = [path for path in found if not whole & set(path.parents)]
    return sorted(path.relative_to(ROOT).as_posix() for path in kept)


def closure(script: Path) -> set[Path]:
    """Every file of the package that a script imports, directly or not, at its top or inside a function."""
    seen: set[Path] = set()
    todo = [script]
    while todo:
        for file in _imports(todo.pop()) - seen:
            seen.add(file)
            todo.append(file)
    return seen


def holds_code(file: Path) -> bool:
    """Whether a file holds more than a docstring."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


def _collapsed(folder: Path, files: set[Path]) -> Iterator[Path]:
    python = {file for file in folder.rglob("*.py") if holds_code(file)}
    if python and python <= files and folder != PACKAGE:
        yield folder
        return
    yield from (file for file in sorted(folder.glob("*.py")) if file in files)
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield from _collapsed(inner, files)


@cache
def _imports(file: Path) -> set[Path]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found: set[Path] = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == PACKAGE.name:
            found |= {path for k in range(1, len(parts) + 1) if (path := _file(parts[1:k]))}
    return found


def _file(parts: list[str]) -> Path | None:
    base = PACKAGE.joinpath(*parts)
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path
    return None


if __name__ == "__main__":
    main()
