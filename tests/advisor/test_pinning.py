"""Pinned experts are hit as often as they are used, LRU as its replay says, and the better of both is told."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.golden.pinning import pinning_checks
from docs.generate import ROOT
from moe_beyond.advisor.held_out import divide
from moe_beyond.advisor.pinning import PINNED, judge, pairs_LEE
from moe_beyond.advisor.pinning_table import COLUMNS, published_pinning
from moe_beyond.devices.device import load_device
from moe_beyond.formats.counts import count_experts
from moe_beyond.formats.placements import Placement
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies.on_demand import LayerLru, Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.phone_traces import shared
from tests.traces_of_chance import chance_trace

PARTS = divide(chance_trace(40))
META = PARTS.fit.metadata
DEVICE = load_device("laptop_nvme")


def judged(split="model", trace=PARTS.judge, **size):
    placement = Placement.of(count_experts(PARTS.fit), split, **(size or {"slots": 4}))
    return placement, judge(placement, trace, DEVICE, seed=7)


@pytest.mark.parametrize("split", ["model", "layer", "layers"])
@pytest.mark.parametrize("slots", [2, 7, 15])
def test_pinned_experts_are_hit_as_often_as_they_are_used(split, slots):
    if split == "layers" and slots == 2:
        slots = 6
    placement, verdict = judged(split, slots=slots)
    decoded = PARTS.judge.experts_TLK[~PARTS.judge.is_prefill_T]
    kept_LE = placement.kept_LE
    used = sum(int(kept_LE[layer][decoded[:, layer]].sum()) for layer in range(3))
    hits = int(verdict.found[PINNED].hits.numerator_P.sum())
    # each pinned expert is loaded once
    assert used - placement.num_kept <= hits <= used
    assert verdict.found[PINNED].replay.total.misses >= placement.num_kept - 1


def test_lru_has_the_same_size():
    _, verdict = judged(budget_bytes=13_500)
    events = events_of(PARTS.judge)
    for policy in (Lru(), LayerLru()):
        counted = replay(events, policy, Budget.slots(META, 13, per_layer=policy.per_layer))
        assert verdict.found[policy.name].replay.total == counted.total


def test_the_better_of_both_is_told():
    pinned_pays = np.zeros_like(PARTS.judge.experts_TLK)
    pinned_pays[..., 0], pinned_pays[..., 1] = 0, 1 + np.arange(len(pinned_pays))[:, None] % 15
    trace = replace(PARTS.judge, experts_TLK=pinned_pays)
    placement = Placement.of(count_experts(trace), "layer", slots=1)
    verdict = judge(placement, trace, DEVICE, seed=7)
    # the one expert that every token uses stays, and in a cache of one nothing does that comes before another
    assert verdict.pays
    assert verdict.sentence.startswith("pin: 50 % against ")
    found = judged()[1]
    assert found.pays == (found.found[PINNED].hits.value > found.found[found.rival].hits.value)
    document = found.document()
    assert document["verdict"] == found.sentence
    assert document["hit_rate_gain_low"] <= document["hit_rate_gain"] <= document["hit_rate_gain_high"]
    assert document["lru"]["ms_per_token"] > 0


def test_where_nothing_is_decoded_prefill_is_taken_token_by_token():
    lengths = np.diff(PARTS.judge.prompt_offsets)
    _, verdict = judged(trace=replace(PARTS.judge, num_prefill_P=lengths.astype(np.int32)))
    assert verdict.found[PINNED].tokens_P.tolist() == lengths.tolist()


def test_pairs_are_those_of_each_token():
    pairs = pairs_LEE(PARTS.fit)
    expected = np.zeros_like(pairs)
    for token in PARTS.fit.experts_TLK.tolist():
        for layer, (a, b) in enumerate(token):
            expected[layer, a, b] += 1
            expected[layer, b, a] += 1
    np.testing.assert_array_equal(pairs, expected)


def test_the_published_table_says_what_its_figures_say():
    table = published_pinning()
    assert list(table.columns) == list(COLUMNS)
    assert table.height == 16
    for row in table.iter_rows(named=True):
        best = max(row["lru_percent"], row["layer_lru_percent"])
        assert row["verdict"] == ("pin" if row["pinned_percent"] > best else "do not pin")


def test_the_published_figures_are_reached_on_a_phone_s_prompt():
    checks = list(pinning_checks(shared(), ["Qwen3-30B-A3B"]))
    assert len(checks) == 2 + 4 * 6
    assert [str(check) for check in checks if check.fails] == []


def test_the_document_shows_the_published_table():
    document = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    for row in published_pinning().iter_rows():
        assert f"| {' | '.join(map(str, row))} |" in document
