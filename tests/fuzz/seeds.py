"""Cases that were mended, each a small zip under seeds/ whose comment says target, mutation and ending.

    python -m tests.fuzz.seeds build/fuzz/device-72 ...

makes seeds of cases that `run` kept.
"""

import sys
import zipfile
from pathlib import Path

from tests.fuzz.judge import Case

FOLDER = Path(__file__).parent / "seeds"
_MOST_BYTES = 50_000


def read(path):
    """Name of the target, and the case."""
    with zipfile.ZipFile(path) as archive:
        name, done, ending = archive.comment.decode().split("\n")
        return name, Case(done, {entry: archive.read(entry) for entry in archive.namelist()}, ending)


def keep(folder):
    """Write a kept case as a seed; returns its path. Raises ValueError if it is too large to be kept."""
    name, done = (folder / "verdict.txt").read_text().splitlines()[:2]
    files = {path.relative_to(folder / "files"): path for path in (folder / "files").rglob("*") if path.is_file()}
    archived = [str(path).partition(".")[2] for path in files if len(files) == 1 and done in _OF_ARCHIVES]
    seed = FOLDER / f"{folder.name}.zip"
    FOLDER.mkdir(exist_ok=True)
    with zipfile.ZipFile(seed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, file in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(str(path)), file.read_bytes(), zipfile.ZIP_DEFLATED)
        archive.comment = "\n".join([name, done, *(archived or [""])]).encode()
    if seed.stat().st_size > _MOST_BYTES:
        seed.unlink()
        raise ValueError(f"{folder}: more than {_MOST_BYTES} bytes as a seed; make the case smaller")
    return seed


_OF_ARCHIVES = ("packed", "member twice", "archive bytes")

if __name__ == "__main__":
    for word in sys.argv[1:]:
        keep(Path(word))
