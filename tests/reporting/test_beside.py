"""What is set beside this run: other models' cards, the paper's protocol; and what probabilities are worth."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_beyond.reporting.blocks import Absent, DataTable, Passage, Section
from moe_beyond.reporting.findings import published_findings
from moe_beyond.reporting.sections.beside import models_section, other_caches_sentence, paper_section, paper_sentence
from moe_beyond.reporting.sections.trust import calibration_errors, calibration_sentence, trust_section, width_sentence
from moe_beyond.reporting.tables import Table, Tables, read_tables
from moe_beyond.reporting.text import percent


def with_table(tables: Tables, name: str, frame: pl.DataFrame | None, absent: str = "it was not written") -> Tables:
    table = Table(tables[name].path, frame, "" if frame is not None else absent)
    return replace(tables, csv=tables.csv | {name: table})


def tables_of(section: Section) -> list[DataTable]:
    return [block for block in section.blocks if isinstance(block, DataTable)]


def words_of(section: Section) -> str:
    return " ".join(block.text for block in section.blocks if isinstance(block, Passage))


def reasons_of(section: Section) -> list[str]:
    return [block.reason for block in section.blocks if isinstance(block, Absent)]


def test_a_row_a_model_with_the_cards_numbers_ours_first_and_stressed(tables: Tables):
    verdicts, routing = tables_of(models_section(tables))
    cards = tables["cards"].rows
    for table in (verdicts, routing):
        assert [row[0] for row in table.rows] == cards["model"].to_list()
        assert (table.emphasis, table.source) == (0, "reports/assess/cards.csv")
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert routing.rows[0][1:5] == ("5", "64", "6", "11")
    assert routing.rows[2][4] == "\u2013"
    for place, row in enumerate(cards.iter_rows(named=True)):
        assert routing.rows[place][5:7] == (percent(row["previous_token_overlap"]), percent(row["entropy_ratio"]))
        rates = [percent(row[name]) for name in ("lru_hit_rate", "static_popularity_hit_rate", "belady_hit_rate")]
        assert list(verdicts.rows[place][3:6]) == rates
        assert verdicts.rows[place][1:3] == (row["verdict"], "25\u00a0%")


def test_how_models_differ_is_said_from_the_numbers(tables: Tables):
    text = words_of(models_section(tables))
    assert "The verdict is \u201cgo\u201d for reference-moe and deep, \u201cdo not\u201d for wide." in text
    assert "LRU hits 29.0\u00a0% (wide) to 62.0\u00a0% (deep)" in text
    assert "the token before had used 21.0\u00a0% (wide) to 48.0\u00a0% (deep)" in text
    assert "most is the nearness of the two tokens in reference-moe, wide and deep." in text
    cards = tables["cards"].rows
    changed = cards.with_columns(
        lru_hit_rate=1 - pl.col("lru_hit_rate"), verdict=pl.lit("go"), belady_hit_rate=0.7, static_skew=pl.lit(0.1)
    )
    text = words_of(models_section(with_table(tables, "cards", changed)))
    assert "All 3 models get the verdict \u201cgo\u201d." in text
    assert "LRU hits 38.0\u00a0% (deep) to 71.0\u00a0% (wide), and Belady's bound is 70.0\u00a0% in all" in text
    assert "in reference-moe and deep; the popularity of a few experts in wide." in text


def test_models_of_one_name_keep_their_owners(tables: Tables):
    cards = tables["cards"].rows.with_columns(model=pl.Series(["a/moe", "b/moe", "c/deep"]))
    assert "LRU hits 29.0\u00a0% (b/moe) to" in words_of(models_section(with_table(tables, "cards", cards)))


def test_one_model_alone_is_no_comparison(tables: Tables):
    section = models_section(with_table(tables, "cards", tables["cards"].rows.head(1)))
    assert not tables_of(section)
    (reason,) = reasons_of(section)
    assert "reports/assess/cards.csv holds this model alone; name traces of others under assess.others" in reason
    assert reasons_of(models_section(with_table(tables, "cards", None))) == ["it was not written"]


def test_the_papers_protocol_shows_every_rate_with_its_interval(tables: Tables):
    table, _ = tables_of(paper_section(tables))
    assert table.columns == ("Predictor", "recall@6", "32 experts", "64 experts", "160 experts")
    assert [row[0] for row in table.rows] == ["Predictor", "Published predictions", "MoE-Infinity, one cluster"]
    assert table.rows[1][1:3] == ("72.5\u00a0%", "72.8\u00a0% [72.4,\u00a073.2]")
    text = words_of(paper_section(tables))
    assert "hits more than the published predictions at 2 of 3 capacities" in text
    assert "82.0\u00a0% against 81.6\u00a0% at 64 experts (undecided)" in text
    assert "76.0\u00a0% against 72.8\u00a0% at 32 experts, " in text


@settings(max_examples=25)
@given(ours=st.floats(0, 1), width=st.floats(0, 0.1))
def test_the_papers_sentence_takes_the_side_of_the_numbers(tables: Tables, ours: float, width: float):
    mine = pl.col("predictor") == "predictor"
    values = {"hit_rate": ours, "low": ours - width, "high": ours + width}
    rows = tables["published_protocol"].rows.filter(pl.col("capacity_experts") == 32)
    rows = rows.with_columns(pl.when(mine).then(pl.lit(v)).otherwise(pl.col(k)).alias(k) for k, v in values.items())
    altered = with_table(tables, "published_protocol", rows)
    text = paper_sentence(altered, "test_out_of_domain")
    assert f"at {int(ours > 0.728)} of 1 capacities" in text
    theirs = rows.filter(pl.col("predictor") == "published_predictions").row(0, named=True)
    apart = ours - width > theirs["high"] or ours + width < theirs["low"]
    assert ("undecided" in text) != apart
    (finding,) = published_findings(altered)
    assert finding.tone == ("neutral" if not apart else "good" if ours > 0.728 else "bad")
    asked = f"our predictor, asked ahead of each token, hits {percent(ours)}"
    assert f"{asked}; the predictions that the paper's authors published hit 72.8" in finding.text


@pytest.mark.parametrize(
    ("low", "high", "tone"), [(0.001, 0.01, "good"), (-0.001, 0.01, "neutral"), (-0.02, -0.01, "bad")]
)
def test_a_difference_paired_by_prompt_decides_where_there_is_one(tables: Tables, low: float, high: float, tone: str):
    rows = tables["published_protocol"].rows.filter(pl.col("capacity_experts") == 32)
    paired = with_table(tables, "published_protocol", rows.with_columns(gain_low=pl.lit(low), gain_high=pl.lit(high)))
    (finding,) = published_findings(paired)
    assert finding.tone == tone
    assert ("undecided" in paper_sentence(paired, "test_out_of_domain")) == (tone == "neutral")


def test_the_papers_prompts_through_other_caches_show_bytes_beside_every_rate(tables: Tables):
    _, table = tables_of(paper_section(tables))
    sizes = ("32 experts", "64 experts", "160 experts")
    headings = [heading for size in sizes for heading in (size, "MiB per token")]
    assert table.columns == ("Predictor, cache", *headings)
    assert [row[0] for row in table.rows] == [
        "Predictor, the paper's LRU",
        "Predictor, the paper's LRU, what is still expected touched",
        "Predictor, LRU that only uses renew",
        "Predictor, eviction by predicted next use",
        "Published predictions, the paper's LRU",
        "Published predictions, the paper's LRU, what is still expected touched",
        "Published predictions, LRU that only uses renew",
    ]
    assert table.rows[3][1:3] == ("79.0\u00a0% [78.6,\u00a079.4]", "420")
    assert table.source == "reports/simulate/published_cache.csv"


def test_what_our_cache_gives_the_papers_predictions_is_said_beside_ours(tables: Tables):
    rows = tables["published_cache"].rows
    text = other_caches_sentence(rows)
    assert text in words_of(paper_section(tables))
    assert "our predictor at 32 experts hits 78.5\u00a0% when, before each layer, it touches the residents" in text
    assert "as were published: +5.7\u00a0points [+4.7, +6.7] against" in text
    assert "with 114 MiB [104, 124] fewer a token. The paper's predictions" in text
    assert "without a probability, hit 73.0\u00a0% that way" in text
    assert "as many slots, our predictor hits 79.0\u00a0%: +6.2\u00a0points [+5.2, +7.2] against" in text
    assert "with 124 MiB [114, 134] fewer a token" in text
    assert "the paper's predictions, which know the rest of the prompt, hit 81.0\u00a0% where only uses renew" in text
    more = rows.with_columns(mib_change=pl.lit(3.0), mib_change_low=pl.lit(-1.0), mib_change_high=pl.lit(7.0))
    assert "with 3 MiB more a token" in other_caches_sentence(more)
    for predictor in ("predictor", "published_predictions"):
        assert other_caches_sentence(rows.filter(pl.col("predictor") != predictor)) == ""


def test_a_layer_step_meets_the_paper_where_it_can_answer(tables: Tables):
    rows = tables["published_protocol"].rows.with_columns(horizon=pl.lit("token"))
    ahead = rows.filter(pl.col("predictor") == "predictor").with_columns(horizon=pl.lit("1"), hit_rate=pl.lit(0.99))
    both = with_table(tables, "published_protocol", pl.concat([rows, ahead]))
    text = paper_sentence(both, "test_out_of_domain")
    assert "asked ahead of each layer, hits more than the published predictions at 3 of 3 capacities: 99.0" in text
    assert "asked ahead of each token" in paper_sentence(
        with_table(tables, "published_protocol", rows), "test_out_of_domain"
    )


def test_without_both_sides_nothing_is_said_of_the_paper(tables: Tables):
    rows = tables["published_protocol"].rows
    for name in ("predictor", "published_predictions"):
        altered = with_table(tables, "published_protocol", rows.filter(pl.col("predictor") != name))
        assert paper_sentence(altered, "test_out_of_domain") == ""
        assert published_findings(altered) == []
        alone = with_table(altered, "published_cache", tables["published_cache"].rows.clear())
        assert [block.kind for block in paper_section(alone).blocks] == ["table"]
    assert published_findings(with_table(tables, "published_protocol", None)) == []


def test_a_table_with_its_header_alone_is_explained(project: Path, tables: Tables, tmp_path: Path):
    path = tmp_path / "reports" / "export" / "published_protocol.csv"
    path.parent.mkdir(parents=True)
    path.write_text("split,predictor,capacity_experts,hit_rate,recall_at_k,low,high\n")
    section = paper_section(read_tables(tmp_path))
    assert reasons_of(section) == ["no test split carries a published predictor's answers"]
    path.unlink()
    assert reasons_of(paper_section(read_tables(tmp_path))) == ["reports/export/published_protocol.csv was not written"]


@pytest.mark.parametrize(("factor", "manner"), [(0.9, "too sure of itself"), (1.0, "honest"), (1.1, "too timid")])
def test_confidence_is_judged_by_what_came_true(tables: Tables, factor: float, manner: str):
    bins = tables["calibration"].rows.with_columns(observed_share=pl.col("mean_probability") * factor)
    text = calibration_sentence(with_table(tables, "calibration", bins))
    assert text.startswith("On another domain a stated probability is off by ")
    assert f"there it is {manner}." in text


def test_the_calibration_error_weighs_bins_by_their_statements(tables: Tables):
    rows = tables["calibration"].rows.filter(pl.col("split") == "test_in_domain")
    expected = sum(
        abs(row["mean_probability"] - row["observed_share"]) * row["count"] for row in rows.iter_rows(named=True)
    ) / sum(rows["count"])
    assert calibration_errors(tables)["test_in_domain"] == pytest.approx(expected)


def test_a_predictor_that_is_never_sure_is_said_to(tables: Tables):
    low = tables["calibration"].rows.filter(pl.col("bin_high") <= 0.5)
    assert "It never says more than one half." in calibration_sentence(with_table(tables, "calibration", low))


def test_the_width_for_each_coverage_is_the_first_that_reaches_it(tables: Tables):
    rows = tables["width"].rows.filter(pl.col("split") == "test_out_of_domain")
    first = int(rows.filter(pl.col("recall") >= 0.9)["width"][0])
    text = width_sentence(tables)
    assert "Experts to name in a layer (the router uses 6) for a coverage" in text
    assert f", {first} for 90\u00a0%" in text
    last = f"the 24 most probable cover {percent(rows['recall'][-1])} of the true experts."
    assert text.endswith(last)
    poor = tables["width"].rows.with_columns(recall=pl.col("recall") / 2)
    assert width_sentence(with_table(tables, "width", poor)).startswith("Of each layer the 24 most probable cover")


def test_absent_measures_of_trust_are_named(tables: Tables):
    section = trust_section(with_table(with_table(tables, "width", None), "calibration", None))
    assert section.lead == ""
    assert reasons_of(section) == ["it was not written"] * 2
