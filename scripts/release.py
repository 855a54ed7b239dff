"""Wheel, sdist, their bill of materials and the sha256 of each, from the last commit: `make release`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.sbom import PROJECT, DiffersError, document, locked, needed

ROOT = Path(__file__).resolve().parents[1]


def release(root: Path, out: Path) -> None:
    """Write the release into a folder; what stood in it before goes.

    Raises:
        DiffersError: Something is not committed, or this environment is not the lock file's.
    """
    if changed := _git(root, "status", "--porcelain"):
        raise DiffersError(f"not committed: {changed.splitlines()[0]}; a release is made of a commit alone")
    seconds, when = _git(root, "show", "-s", "--format=%ct%n%cI", "HEAD").splitlines()
    shutil.rmtree(out, ignore_errors=True)
    # the wheel is made from the sdist in a temporary folder: nothing that lies about here comes in
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(root)]
    done = subprocess.run(
        build, env=os.environ | {"SOURCE_DATE_EPOCH": seconds}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DiffersError(f"the build failed: {' '.join((done.stdout + done.stderr).split())[-400:]}")
    lock = locked((root / "requirements.lock").read_text(encoding="utf-8"))
    bill = document(lock, needed(PROJECT), _digests(out), when)
    (out / f"{PROJECT}.cdx.json").write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
    sums = "".join(f"{digest}  {name}\n" for name, digest in _digests(out).items())
    (out / "SHA256SUMS").write_text(sums, encoding="utf-8")


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Write the release of this checkout into build/release."""
    out = ROOT / "build" / "release"
    try:
        release(ROOT, out)
    except DiffersError as error:
        sys.exit(f"error: {error}")
    print((out / "SHA256SUMS").read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
