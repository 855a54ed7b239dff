"""Several workers share a study: one is killed, and nothing is lost or tried twice."""

import pytest

from moe_beyond.tuning import search
from tests.several_workers import check_nothing_lost_nothing_doubled, run_with_a_kill
from tests.tuning_case import FileLog, job


@pytest.mark.timeout(600)
def test_two_workers_share_a_study_and_one_is_killed(tmp_path):
    ledger = run_with_a_kill(tmp_path, None)
    check_nothing_lost_nothing_doubled(tmp_path, ledger)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_by_two_processes_tries_each_candidate_once(tmp_path):
    log = FileLog(tmp_path / "log")
    result, run_ids = search(job(tmp_path / "study", log, workers=2))
    assert result.trials["state"].to_list() == ["complete"] * 4
    assert result.trials.select("width", "heads").n_unique() == 4
    assert len(set(run_ids)) == len(log.runs()) == 4
    assert len({line["pid"] for run in log.runs() for line in run.lines()[:1]}) == 2, "both worked"
