"""Damaged inputs of every format, many a minute, each within 30 s and 2 GiB, until the time is over.

    python -m tests.fuzz.run [--minutes 5] [--cases 0] [--only WORD ...] [--seed 0]

Prints a line a target and ends with status 1 if any case ended badly; each of these lies under build/fuzz/ as files.
`--cases N` stops at N cases of each target, however long they take; with `--minutes` too, fewer end with status 2.
A case that is mended becomes a seed, by `tests.fuzz.seeds`.
"""

import argparse
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from tests.formats.cases import write
from tests.fuzz.judge import BAD, FINE, Verdict, judge, made
from tests.fuzz.predictors import target as predictor
from tests.fuzz.targets import ROOT, TARGETS, digest

SECONDS, BYTES = 30, 2 << 30
_CASES_A_CHILD = 100
_FOUND = ROOT / "build" / "fuzz"
_FORK = multiprocessing.get_context("fork")


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _address_space():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _cpu(child):
    try:
        times = psutil.Process(child.pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def _whole(name, target):
    """The digest of the whole input, read in a child."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), target.files)
        return digest(target.read(Path(folder)))


def _child(pipe: Connection, name, target, whole, numbers, seed):  # noqa: PLR0917
    # beyond the limit that is measured, so that the machine stays up whatever happens
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + 3 * BYTES,) * 2)
    if whole is None:
        pipe.send(_whole(name, target))
        return
    for number in numbers:
        before = _peak()
        verdict = judge(target, made(name, target, number, seed), whole, digest)
        # what the child has once had stays in the peak: only growth counts
        grown = _peak() - before
        pipe.send(Verdict("too large", f"{grown >> 20} MiB") if grown > BYTES else verdict)


def _answers(name, target, whole, numbers, seed):
    """Verdicts of cases in order; one that takes too long, or kills the child, is its last."""
    ours, theirs = _FORK.Pipe(duplex=False)
    child = _FORK.Process(target=_child, args=(theirs, name, target, whole, numbers, seed))
    child.start()
    theirs.close()
    try:
        for _ in numbers:
            begins, used = time.monotonic(), _cpu(child)
            while not ours.poll(1):
                # on a busy machine the clock runs on
                if _cpu(child) - used > SECONDS or time.monotonic() - begins > 10 * SECONDS:
                    yield Verdict("too long", f"more than {SECONDS} s")
                    return
            yield ours.recv()
    except EOFError:
        child.join()
        yield Verdict("traceback", f"the process ended with {child.exitcode}")
    finally:
        child.kill()
        child.join()


def _keep(name, number, case, verdict):
    folder = _FOUND / f"{name.replace(' ', '-')}-{number}"
    write(folder, {f"files/{path}": data for path, data in case.files.items()})
    (folder / "verdict.txt").write_text(f"{name}\n{case.done}\n{verdict.kind}\n{verdict.detail}\n")
    return folder.relative_to(ROOT)


def main():
    """Run, report, and say by the status whether all was well."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--minutes", type=float)
    words.add_argument("--cases", type=int, default=0)
    words.add_argument("--only", nargs="*", default=[])
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--first", type=int, default=0)
    said = words.parse_args()
    targets = {name: target for name, target in TARGETS.items() if not said.only or any(w in name for w in said.only)}
    if not said.only or any(word in "predictor" for word in said.only):
        folder = Path(tempfile.mkdtemp()) / "predictor"
        subprocess.run([sys.executable, "-m", "tests.fuzz.predictors", folder], check=True, stdout=subprocess.DEVNULL)
        targets["predictor"] = predictor(folder)
    # what takes seconds to import, and each child would import anew
    _whole("config.json", TARGETS["config.json"])
    wholes = {name: next(_answers(name, target, None, [0], 0)) for name, target in targets.items()}
    minutes = said.minutes if said.minutes is not None else float("inf") if said.cases else 5.0
    counts, done, end = (
        {name: Counter() for name in targets},
        dict.fromkeys(targets, said.first),
        time.monotonic() + 60 * minutes,
    )
    stop = said.first + said.cases if said.cases else sys.maxsize
    while time.monotonic() < end and min(done.values()) < stop:
        for name, target in targets.items():
            numbers = list(range(done[name], min(done[name] + _CASES_A_CHILD, stop)))
            for verdict in _answers(name, target, wholes[name], numbers, said.seed) if numbers else ():
                counts[name][verdict.kind] += 1
                if verdict.kind in BAD:
                    kept = _keep(name, done[name], made(name, target, done[name], said.seed), verdict)
                    print(f"{name}: {verdict.kind}: {kept}: {verdict.detail.strip().splitlines()[-1]:.150}", flush=True)
                done[name] += 1
            if time.monotonic() > end:
                break
    kinds = (*FINE, *BAD)
    print("cases", *(kind.replace(" ", "_") for kind in kinds), "target")
    for name, found in counts.items():
        print(found.total(), *(found[kind] for kind in kinds), name)
    total = sum(counts.values(), Counter())
    print(total.total(), *(total[kind] for kind in kinds), "all")
    short = said.cases > 0 and min(done.values()) < stop
    sys.exit(1 if any(total[kind] for kind in BAD) else 2 * short)


if __name__ == "__main__":
    main()
