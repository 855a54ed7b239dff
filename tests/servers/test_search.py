"""The search on a team's PostgreSQL."""

import pytest

from moe_beyond.tuning.study import StudyPlace
from tests.tuning.several_workers import try_with_a_kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_two_workers_share_a_study_on_postgresql_while_it_is_killed(servers, tmp_path):
    def break_postgres():
        servers.kill_postgres()
        servers.start_postgres()

    place = StudyPlace("study", servers.database("optuna"), grace_s=20)
    try_with_a_kill(place, tmp_path / "log", break_postgres)
