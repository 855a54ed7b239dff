"""What follows from an advice: the cliff, pins, the worst domain, verify blocks that slow decoding."""

from dataclasses import replace
from typing import Any

import pytest

from moe_beyond.advisor.choice import AdviceSettings, advise
from moe_beyond.advisor.decisions import decisions
from moe_beyond.advisor.plans import CacheSize
from moe_beyond.devices.device import load_device
from moe_beyond.errors import InputError
from tests.simulator.strategies import make_trace

PROMPTS = 16
TOKENS: dict[str, Any] = {"lengths": (24,) * PROMPTS, "prefill": (4,) * PROMPTS}
# two experts in each of four layers: a token uses eight
TRACE = replace(
    make_trace(5, num_layers=4, num_experts=12, top_k=2, expert_bytes=(4_000_000,) * 4, **TOKENS),
    domains=("law", "law", "code", "code") * (PROMPTS // 4),
)
SETTINGS = AdviceSettings(load_device("laptop_nvme"), CacheSize(14), samples=100)


@pytest.fixture(scope="module")
def advice():
    return advise(TRACE, SETTINGS)


def test_the_sweep_marks_what_holds_less_than_a_token_uses(advice):
    rows = decisions(advice)["memory_sweep"]
    sizes = [row["budget_experts"] for row in rows]
    assert sizes == sorted(sizes)
    assert {4, 14, 42} <= set(sizes)
    for row in rows:
        assert row["over_one_steps_demand"] == pytest.approx(row["budget_experts"] / 8)
        assert row["below_cliff"] == (row["budget_experts"] < 8)
    of_best = next(row for row in rows if row["budget_experts"] == 14)
    assert of_best["ms_per_token"] == advice.best.ms_per_token
    assert rows[-1]["ms_per_token"] < rows[0]["ms_per_token"]


def test_pins_and_swaps_are_tried_and_pins_are_compared_with_lru(advice):
    tried = {str(one.plan): one.ms_per_token for one in advice.tried}
    pinned = {plan: ms for plan, ms in tried.items() if plan.startswith("pinned_lru_")}
    assert set(pinned) == {"pinned_lru_4", "pinned_lru_7", "pinned_lru_10"}
    assert "swap_1, layers alike" in tried
    pins = decisions(advice)["pins"]
    assert pins["ms_per_token"] == min(pinned.values()) == pinned[f"pinned_lru_{pins['experts']}"]
    assert pins["lru_ms_per_token"] == tried["lru"]
    warm = decisions(advice)["warm_start"]
    assert warm["ms_per_token"] == min(tried["warm_lru_2"], tried["warm_lru_4"])


def test_the_mean_lies_between_the_domains_of_which_the_slowest_comes_first(advice):
    worst, other = decisions(advice)["domains"]
    assert {worst["domain"], other["domain"]} == {"law", "code"}
    assert other["ms_per_token"] <= advice.best.ms_per_token <= worst["ms_per_token"]
    # both have as many tokens
    assert (worst["ms_per_token"] + other["ms_per_token"]) / 2 == pytest.approx(advice.best.ms_per_token)


def test_verify_blocks_that_slow_decoding_are_warned_of_with_the_number():
    rejected = advise(TRACE, replace(SETTINGS, block=4, accepted_share=0.25))
    found = decisions(rejected)
    blocks = found["speculation"]
    # of four tokens one is kept: experts of all four are loaded for it
    assert blocks["experts_over_one_token"] > 1.5
    assert blocks["ms_per_accepted_token"] > blocks["ms_per_token_without"]
    share = blocks["ms_per_accepted_token"] / blocks["ms_per_token_without"] - 1
    assert any(f"slow decoding by {share:.0%}: do without" in sentence for sentence in found["advice"])


def test_blocks_without_an_accepted_share_are_refused():
    with pytest.raises(InputError, match="give accepted_share too"):
        advise(TRACE, replace(SETTINGS, block=4))


GIB, MIB = 2**30, 2**20
NEVER_ENOUGH = {"link_gb_per_s": 0.5, "memory_gib": 160e6 / GIB}
"""Beside 32 MB of dense weights, as assumed, 128 MB are left: 32 experts."""


def sweep_of(**terms):
    device = SETTINGS.device.model_copy(update={**NEVER_ENOUGH, **terms})
    return decisions(advise(TRACE, replace(SETTINGS, device=device, samples=20)))


def test_a_cache_that_takes_the_page_cache_away_is_marked_with_what_it_leaves():
    found = sweep_of(page_gb_per_s=400.0)
    rows = {row["budget_experts"]: row for row in found["memory_sweep"]}
    for slots, row in rows.items():
        assert row["page_cache_mib"] == pytest.approx(max(0, 32 - slots) * 4e6 / MIB)
        assert row["dense_fits"] == (slots <= 32)
    # pages are read so fast that a larger cache only takes them away
    slower = [slots for slots, row in rows.items() if row["slower_than_smaller"]]
    assert slower
    assert rows[slower[0]]["ms_per_token"] > rows[4]["ms_per_token"]
    (said,) = [one for one in found["advice"] if one.startswith("More cache is slower from ")]
    assert said.startswith(f"More cache is slower from {slower[0]} experts on, ")
    assert said.endswith(f"instead of {rows[prior(rows, slower[0])]['page_cache_mib']:.0f}.")


def prior(rows, slots):
    return max(smaller for smaller in rows if smaller < slots)


def test_a_cache_that_leaves_no_memory_for_dense_weights_is_marked():
    found = sweep_of(fault_gb_per_s=0.05)
    rows = {row["budget_experts"]: row for row in found["memory_sweep"]}
    assert [slots for slots, row in rows.items() if not row["dense_fits"]] == [42]
    assert [slots for slots, row in rows.items() if row["slower_than_smaller"]] == [42]
    assert rows[42]["ms_per_token"] - rows[28]["ms_per_token"] > 32e6 / 0.05e6 - rows[28]["ms_per_token"]
    (said,) = [one for one in found["advice"] if one.startswith("More cache is slower from 42 experts on")]
    assert said.endswith("dense weights no longer fit and come by page faults.")


def test_where_memory_is_no_matter_nothing_is_said_of_it(advice):
    found = decisions(advice)
    assert not any("cache is slower" in one or "caches tried none" in one for one in found["advice"])
    assert not any(row["slower_than_smaller"] for row in found["memory_sweep"])
