import pytest

from moe_beyond.simulator.study.study import Charged, replay_splits
from moe_beyond.simulator.study.tables import all_tables
from tests.simulator.study.cases import SETTINGS, PartlyRight, TokenStep, drawn


@pytest.fixture(scope="package")
def replays():
    """Two test splits under ours, which is charged 0.3 and 0.05 ms, and a rival's table, which is charged 0.02."""
    predictors = [Charged(PartlyRight(0.5, ahead_right=0.7), 0.3, 0.05), Charged(TokenStep(0.4), 0.02)]
    splits = {"test_in_domain": drawn(1), "test_out_of_domain": drawn(2)}
    return replay_splits(splits, drawn(3), drawn(4), predictors, SETTINGS)


@pytest.fixture(scope="package")
def tables(replays):
    return all_tables(replays, seed=7)
