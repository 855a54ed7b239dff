"""The search on a team's PostgreSQL."""

import pytest

from tests.several_workers import check_nothing_lost_nothing_doubled, run_with_a_kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_two_workers_share_a_study_on_postgresql_while_it_is_killed(servers, tmp_path):
    def break_postgres():
        servers.kill_postgres()
        servers.start_postgres()

    ledger = run_with_a_kill(tmp_path, servers.database("optuna"), break_postgres)
    check_nothing_lost_nothing_doubled(tmp_path, ledger)
