"""The sentences of the page: the headline, findings for and against, and whether prefetching pays."""

from dataclasses import replace

import polars as pl
import pytest

from moe_beyond.reporting.blocks import Text
from moe_beyond.reporting.sections.findings import findings
from moe_beyond.reporting.sections.pays import pays_section, pays_words
from moe_beyond.reporting.sections.verdict import headline, verdict_section
from tests.reporting.example import BOUND, OURS, pays


def changed(run, **values):
    """The run with values of ours replaced in the table of the device."""
    ours = pl.col("policy") == OURS
    columns = [pl.when(ours).then(pl.lit(value)).otherwise(pl.col(name)).alias(name) for name, value in values.items()]
    return replace(run, tables=run.tables | {"on_device": run.tables["on_device"].with_columns(columns)})


def headline_of(run):
    return headline(run.contest(run.split, run.devices[0]))


def sentences(run):
    return {block.tone: list(block.points) for block in findings(run) if isinstance(block, Text)}


def test_the_headline_leads_with_the_device(run):
    # LRU 50 * 0.95 ms at a tenth of the experts, ours 0.8 of it, the best without the predictor 0.9
    assert headline_of(run) == (
        "Laptop, NVMe (no recording), 16 experts (10\u00a0%) in fast memory: "
        "38 ms a token with our predictor, 9.50 ms less than LRU "
        "and 4.75 ms less than the best policy without it"
    )


def test_the_headline_says_where_the_predictor_does_not_win(run):
    for values, end in (
        ({"against_best_ms_high": 0.1}, "9.50 ms less than LRU, but no less than the best policy without it"),
        ({"against_lru_ms_high": 0.1}, ", no faster than LRU"),
        ({"ours": False}, "no use of the predictor was timed"),
    ):
        assert headline_of(changed(run, **values)).endswith(end)


def test_four_rows_decide_and_each_is_named(run):
    table = verdict_section(run).blocks[0]
    assert table.caption == "Laptop, NVMe (no recording), 16 experts (10\u00a0%), another domain"
    cells = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    ours = "Ours: Predictor: prefetch, predicted eviction"
    best = "Best without the predictor: Token unigram: prefetch, LRU"
    assert list(cells) == ["LRU", best, ours, "Clairvoyant bound"]
    assert cells[ours]["ms per token"] == "38 [37.5,\u00a038.5]"
    assert cells[ours]["Charged latency, ms"].startswith("0.200\u00a0a\u00a0token,")
    assert cells[ours]["Hit rate on the device"] == "11.0\u00a0% [10.0\u00a0%,\u00a012.0\u00a0%]"
    bound = cells["Clairvoyant bound"]
    assert (bound["ms per token"], bound["MiB per token"]) == (f"{50 * 0.95 * BOUND:.1f}", "40")
    chosen = ["\u2013", "with hindsight, on these prompts", "on validation prompts", "\u2013"]
    assert [row["Chosen"] for row in cells.values()] == chosen
    assert table.chosen == {2}


def test_differences_are_paired_and_name_the_faster(run):
    table = verdict_section(changed(run, against_best_ms_high=0.1)).blocks[1]
    assert table.caption == "On the same prompts, ours closes 40.0\u00a0% of the gap between LRU and the bound"
    assert [row[-1] for row in table.rows] == ["faster", "undecided"]
    assert table.rows[0][1] == "\u22129.50 [\u22129.75,\u00a0\u22129.25]"


def test_findings_are_for_the_predictor_where_it_wins(run):
    assert {
        "Laptop, NVMe (no recording): \u22124.75 ms [\u22125,\u00a0\u22124.50] a token "
        "against the best policy without the predictor.",
        "Another domain: recall@3 of 74.0\u00a0%, Token unigram 54.0\u00a0%.",
        "The paper's replay, 16 experts: +1.4\u00a0points of hit rate against the published predictions.",
    } <= set(sentences(run)["good"])


def test_findings_are_against_it_where_it_loses(run):
    lost = changed(run, against_best_ms_low=0.1, against_lru_ms_low=0.1, mib_per_token_low=200.0)
    bad = sentences(lost)["bad"]
    # an undecided difference is none
    assert not any("against the best policy without the predictor" in sentence for sentence in bad)
    assert {
        "Laptop, NVMe (no recording): 50.0\u00a0% of its prefetches come late, 12.5\u00a0% are wasted.",
        "Laptop, NVMe (no recording): it moves 90 MiB a token, LRU 90.",
        "Laptop, NVMe (no recording): 2 of 5 lossless policies are slower than LRU, "
        "of ours Predictor: prefetch, predicted eviction.",
    } <= set(bad)
    loser = changed(run, against_best_ms_low=0.1, against_best_ms_high=0.3)
    assert sum("against the best policy without the predictor" in sentence for sentence in sentences(loser)["bad"]) == 2


def test_a_lead_where_lru_cannot_hit_means_little(run):
    assert not any("LRU cannot hit" in sentence for sentence in sentences(run)["open"])
    small = replace(run, card=run.card | {"token_cycle_experts": 20})
    assert any("below the 20 experts of one token" in sentence for sentence in sentences(small)["open"])


def test_a_predictor_that_sees_the_future_is_no_rival(run):
    quality = run.tables["quality"]
    future = {"predictor": pl.lit("published network, leaky"), "recall_at_k": pl.lit(0.99)}
    leaky = quality.filter(predictor="token unigram").with_columns(**future)
    seen = replace(run, tables=run.tables | {"quality": pl.concat([quality, leaky])})
    assert "Another domain: recall@3 of 74.0\u00a0%, Token unigram 54.0\u00a0%." in sentences(seen)["good"]


def a_row(**values):
    return pays().filter(device="laptop_nvme", capacity_experts=16).row(0, named=True) | values


def test_the_answer_stands_with_its_counts():
    text = pays_words(a_row(answer="yes", pays_from_gb_per_s=None))
    assert (text.title, text.tone) == ("Laptop, NVMe (no recording), 16 experts: yes", "good")
    everything = " ".join((text.text, *text.points)).replace("\u00a0", " ").replace("\u2011", "-")
    for words in (
        "38 ms a token, charged latency included (0.200 a token, 0.0500 a layer, break-even 4.50 a token)",
        "LFU per layer, which prefetches nothing, 45.1 ms",
        "idle 7.0 % of the time on demand and 2.0 % with prefetching",
        "42.0 % of the prefetches are used and in time",
        "name 83.0 % of the accesses that LRU misses",
        "reads 1.40 bytes for each byte",
        "faster up to 6 experts a layer",
    ):
        assert words in everything
    assert not any(words in everything for words in ("GB/s", "Recall is high"))


IDLE = {"link_idle_share_on_demand": 0.6}
SAVES = IDLE | {"bytes_read_per_byte_saved": 0.9}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "the link has little idle time"),
        (IDLE, "prefetching reads more than it saves"),
        (IDLE | {"bytes_read_per_byte_saved": None}, "reads more than it saves"),
        (SAVES, "too late to save the stall"),
        (SAVES | {"prefetches_in_time": 0.9}, "less than the latency of predicting"),
    ],
)
def test_high_recall_that_does_not_pay_gets_a_reason(values, reason):
    for answer in ("no", "only with more bandwidth"):
        text = pays_words(a_row(answer=answer, **values))
        assert text.points[-1].startswith("Recall is high, and still it does not pay")
        assert reason in text.points[-1]
        assert text.tone == "bad"


def test_low_recall_needs_no_such_reason_and_the_bandwidth_is_named():
    for recall in (0.3, None):
        assert "Recall is high" not in " ".join(pays_words(a_row(answer="no", recall_on_lru_misses=recall)).points)
    assert "It pays from a bandwidth of 10 GB/s on." in pays_words(a_row()).points


def test_each_device_has_its_answer_at_the_headlines_capacity(run):
    titles = [block.title for block in pays_section(run).blocks if isinstance(block, Text)]
    assert titles == [
        "Laptop, NVMe (no recording), 16 experts: only with more bandwidth",
        "Phone, UFS flash, 16 experts: yes",
    ]
