import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.errors import InputError
from moe_beyond.intervals import Ratio
from moe_beyond.registry.settings import PublishSettings
from moe_beyond.registry.verdict import improvement, judge, metrics, table
from tests.registry.contestants import drawn_score

SETTINGS = PublishSettings(bootstrap_samples=200)


def test_without_a_champion_the_first_becomes_it_unless_it_is_too_slow():
    assert judge(drawn_score(), None, SETTINGS, 1).outcome == "first"
    slow = judge(drawn_score(latency_ms=6.0), None, SETTINGS, 1)
    assert (slow.outcome, slow.moves_champion) == ("refused", False)
    assert slow.reasons[0] == "fails: a token step takes at most 5 ms (found 6, limit 5)"


def test_a_faster_challenger_wins_and_the_interval_is_paired():
    verdict = judge(drawn_score(faster=0.02), drawn_score("champion"), SETTINGS, 1)
    assert verdict.outcome == "promoted"
    # every prompt is faster by the same share: paired, no doubt remains, though prompts differ by tens of per cent
    assert [verdict.improvement.low, verdict.improvement.high] == pytest.approx([0.02, 0.02])


def test_each_rule_alone_refuses_and_names_itself():
    champion = drawn_score("champion")
    for challenger, words in [
        (drawn_score(faster=0.004), "ms_per_token improves by more than 0.50%"),
        (drawn_score(faster=0.02, worse_abroad=0.02), "worst domain (gate_out_of_domain) loses at most 1.0%"),
        (drawn_score(faster=0.02, latency_ms=5.1), "a token step takes at most 5 ms"),
    ]:
        verdict = judge(challenger, champion, SETTINGS, 1)
        assert verdict.outcome == "refused"
        assert [check.passed for check in verdict.checks].count(False) == 1
        (failed,) = [reason for reason in verdict.reasons if reason.startswith("fails: ")]
        assert words in failed


def test_a_gain_that_some_prompts_do_not_share_must_outweigh_its_doubt():
    champion, noisy = drawn_score("champion", prompts=10), drawn_score(prompts=10)
    rng = np.random.default_rng(0)
    for split in noisy.splits.values():
        ratio = split["ms_per_token"]
        split["ms_per_token"] = Ratio(ratio.numerator_P * rng.normal(0.98, 0.3, 10), ratio.denominator_P)
    verdict = judge(noisy, champion, SETTINGS, 1)
    assert verdict.improvement.low < SETTINGS.margin < verdict.improvement.high
    assert verdict.outcome == "refused"


@given(faster=st.floats(-0.5, 0.5), metric=st.sampled_from(["ms_per_token", "recall_at_k", "hit_rate"]))
def test_improvement_is_none_against_itself_and_of_the_sign_of_the_gain(faster, metric):
    settings = PublishSettings(bootstrap_samples=100, metric=metric)
    mine, theirs = drawn_score(faster=faster, hits=0.5 * (1 + faster)), drawn_score("champion")
    same = improvement(theirs, theirs, settings, 1)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    expected = 0.0 if metric == "recall_at_k" else faster
    assert improvement(mine, theirs, settings, 1).value == pytest.approx(expected, abs=1e-12)


def test_a_champion_without_a_single_hit_gives_no_share_to_gain():
    settings = PublishSettings(bootstrap_samples=100, metric="hit_rate")
    with pytest.raises(InputError, match="the champion's hit_rate is 0"):
        judge(drawn_score(hits=0.1), drawn_score("champion", hits=0.0), settings, 1)


def test_the_table_and_the_metrics_hold_both_sides_and_every_split():
    scores = [drawn_score(faster=0.02), drawn_score("champion")]
    rows = table(scores, SETTINGS, 1)
    assert rows.group_by("contestant").len()["len"].to_list() == [14, 14]
    all_rows = rows.filter(split="all", metric="ms_per_token")
    assert (all_rows["low"] < all_rows["value"]).all()
    found = metrics(judge(*scores, SETTINGS, 1), scores)
    assert found["moves_champion"] == 1
    assert found["challenger"]["ms_per_token"] == pytest.approx(0.98 * found["champion"]["ms_per_token"])
    assert found["champion"]["worst_domain_hit_rate"] == 0.5
