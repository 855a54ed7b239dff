"""The same commit and parameters give the same outs to the bit."""

import pytest
import torch
import yaml

from moe_beyond.files import folder_digest
from moe_beyond.training.fit import fit
from moe_beyond.training.size import Size
from tests.predictor.small import SETTINGS
from tests.test_end_to_end import ROOT, TINY, call
from tests.traces_of_chance import chance_trace

MEASUREMENTS = {"reports/index.html", "reports/figures"} | {
    f"reports/{path}"
    for path in (
        "export/latency.json",
        "export/run.json",
        "verify/tables",
        "verify/metrics.json",
        "verify/run.json",
        "report/run.json",
    )
}
"""Outs that hold a time which was measured, or the fingerprint of one: the page has those of live decoding."""
CHARGED = {"models/predictor"} | {f"reports/simulate/{path}" for path in ("tables", "metrics.json", "run.json")}
"""Outs that hold what is charged for the predictor."""


def test_a_fit_comes_out_the_same_to_the_bit(tmp_path):
    train, validation = chance_trace(20, seed=1, name="t"), chance_trace(5, seed=2, name="v")
    first, second = (
        fit(train, validation, Size(16, 1, 2), SETTINGS, epochs=2, seed=3, scratch=tmp_path / name) for name in "ab"
    )
    assert first.history == second.history
    states = first.checkpoint.network.state_dict(), second.checkpoint.network.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_clones_make_the_same_outs_whatever_their_environment_says(tmp_path):
    """Other kernels and thread counts asked for by environment change nothing: every stage pins its own."""
    forced = {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "OMP_NUM_THREADS": "4",
        "MKL_NUM_THREADS": "2",
    }
    overrides = [word for key, value in TINY.items() for word in ("-S", f"++{key}={value}")]
    outs, charges = [], []
    for name, environment in (("a", {}), ("b", forced)):
        clone = tmp_path / name
        call(ROOT, "git", "clone", "-q", str(ROOT), str(clone))
        call(clone, "dvc", "exp", "run", *overrides, "report", **environment)
        stages = yaml.safe_load((clone / "dvc.lock").read_text())["stages"]
        found = {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}
        predictor = clone / "models/predictor"
        outs.append(found | {path.name: folder_digest(path) for path in predictor.iterdir()})
        charges.append((predictor / "latency.json").read_text())
    assert {"models/predictor", "reports/tune/best.yaml", "reports/simulate/tables"} <= set(outs[0])
    allowed = MEASUREMENTS
    if charges[0] != charges[1]:  # a busy machine: a step took longer than the arithmetic says, and that is charged
        allowed = MEASUREMENTS | CHARGED | {"latency.json"}
    assert {path for path in outs[0] if outs[0][path] != outs[1][path]} <= allowed
