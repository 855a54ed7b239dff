"""A clone without cache or remote runs any target of the pipeline to a good end, and shows what git holds."""

import json

import pytest

from tests.test_end_to_end import OVERRIDES, ROOT, call, stages_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_targets_of_a_fresh_clone_end_well_and_committed_metrics_show(tmp_path):
    clone = tmp_path / "clone"
    call(ROOT, "git", "clone", "-q", str(ROOT), str(clone))

    def shown():
        (file,) = json.loads(call(clone, "dvc", "metrics", "show", "--json").stdout)[""]["data"].values()
        return file["data"]

    committed = json.loads((clone / "reports/simulate/metrics.json").read_text())
    assert shown() == committed
    done = call(clone, "dvc", "exp", "run", "reference", *OVERRIDES)
    assert stages_run(done.stdout) == ["reference"]
    # a later one makes what it needs, and nothing twice
    done = call(clone, "dvc", "exp", "run", "split", *OVERRIDES)
    assert stages_run(done.stdout) == ["extract", "split"]
    assert shown() == committed
    call(clone, "dvc", "plots", "show", "reports/reference/history.csv", "--json")
    call(clone, "dvc", "status")
