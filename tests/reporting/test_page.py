"""The page as HTML: whole, true to its tables, the same bytes in every process, and standing where tables are empty."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree.ElementTree import TreeBuilder

import polars as pl
import pytest

from moe_beyond.advisor.pinning_table import published_pinning
from moe_beyond.devices.errors import published_errors
from moe_beyond.errors import InputError
from moe_beyond.files import folder_digest
from moe_beyond.reporting.page import compose, render_report, sections_of
from moe_beyond.reporting.settings import ReportSettings
from moe_beyond.reporting.text import number
from tests.reporting.conftest import SMALL, html_of, rewrite, run_of
from tests.reporting.example import POLICIES, write_example

VOID = {"meta", "link", "input", "br", "hr", "img"}
UPPER_BOUND = "Hit rate, unlimited link (upper bound)"
ROOT = Path(__file__).parents[2]


class Tree(HTMLParser):
    """Builds an element tree, strictly enough to notice an element that is not closed."""

    def __init__(self, text):
        super().__init__()
        self.builder, self.closed = TreeBuilder(), None
        self.feed(text)
        self.root = self.builder.close()
        assert self.closed is self.root, "html is not closed"

    def handle_starttag(self, tag, attrs):
        self.builder.start(tag, {key: value or "" for key, value in attrs})
        if tag in VOID:
            self.builder.end(tag)

    def handle_endtag(self, tag):
        self.closed = self.builder.end(tag)
        assert self.closed.tag == tag, f"</{tag}> ends {self.closed.tag}"

    def handle_data(self, data):
        self.builder.data(data)


def page(root):
    return (root / "reports" / "index.html").read_text(encoding="utf-8")


def text_of(node):
    return "".join(node.itertext())


def tables_of(node):
    """Rows of every table by heading."""
    found = []
    for table in node.iter("table"):
        head, *rows = [[text_of(cell) for cell in row] for row in table.iter("tr")]
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def tree_of(root):
    return Tree(html_of(root)).root


def section(tree, anchor):
    return tree.find(f".//section[@id='{anchor}']")


@pytest.fixture(scope="module")
def tree(rendered):
    return Tree(page(rendered)).root


def test_ids_are_unique_and_every_link_leads_somewhere(rendered, tree):
    ids = [node.get("id") for node in tree.iter() if "id" in node.attrib]
    assert len(ids) == len(set(ids))
    for link in (node.get("href") for node in tree.iter("a")):
        assert link[1:] in ids if link.startswith("#") else (rendered / "reports" / link).is_file(), link


def test_headings_descend_without_gaps(tree):
    levels = [int(node.tag[1]) for node in tree.iter() if re.fullmatch("h[1-6]", node.tag)]
    assert (levels[0], levels.count(1)) == (1, 1)
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_page_is_the_same_to_the_byte_in_every_process(rendered, copy):
    """Whatever the hash seed, and however often charts were drawn before."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    code = f"from tests.reporting.conftest import Path, render\nrender(Path({str(copy)!r}))"
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=ROOT)
        assert page(copy) == page(rendered)
        assert folder_digest(copy / "reports/figures") == folder_digest(rendered / "reports/figures")


def test_nothing_that_a_run_measured_or_that_names_it_is_shown(rendered):
    text = page(rendered).split("<body>")[1].split('id="theme"')[0]
    for trace in (r"0\.0854", "run_id", "mlflow", r"git\.commit", str(rendered), r"3\.11\.\d", r"20\d\d-\d\d-\d\d"):
        assert not re.search(trace, text), trace


def test_the_two_hit_rates_have_their_two_names_and_no_third(tree):
    names = {heading for rows in tables_of(tree) for heading in rows[0] if "hit rate" in heading.lower()}
    # the paper's own replay, on its unlimited link
    paper = {heading for rows in tables_of(section(tree, "paper")) for heading in rows[0] if "Hit rate" in heading}
    assert paper == {"Hit rate, ours", "Hit rate, published", "Hit rate"}
    # a model that was decoded has hit rates of its own
    live = {
        heading for rows in tables_of(section(tree, "live")) for heading in rows[0] if "hit rate" in heading.lower()
    }
    assert live == {"Measured hit rate", "Modelled hit rate"}
    assert names - paper - live == {"Hit rate on the device", UPPER_BOUND}


def test_the_explorer_never_mixes_the_two_hit_rates(tree, run):
    (rows,) = tables_of(section(tree, "explorer"))
    assert {row["Policy"] for row in rows} == {title for title, *_ in POLICIES.values()}
    assert {(row["Hit rate on the device"], row[UPPER_BOUND]) for row in rows} == {("11.0\u00a0%", "12.5\u00a0%")}
    # a policy whose name the report does not contain
    assert [row["Kind"] for row in rows if row["Policy"] == "FIFO"] == ["on demand"]
    lost = {row["Policy"]: row["Router weight lost"] for row in rows}
    assert {policy: share for policy, share in lost.items() if share != "\u2013"} == {"MoTE": "40.00\u00a0%"}
    timed = run.at(run.split, "laptop_nvme")
    assert [row["ms per token"] for row in rows] == [number(ms) for ms in timed["ms_per_token"]]


def test_a_charged_latency_stands_in_every_table_of_times(tree):
    timed = [rows[0] for rows in tables_of(tree) if any(heading.startswith("ms per token") for heading in rows[0])]
    assert len(timed) > 15
    for row in timed:
        assert any("harged" in heading for heading in row), row


def test_the_paper_is_compared_in_one_cache_a_row_its_own_first(tree):
    part = section(tree, "paper")
    assert [text_of(caption).split(":")[0] for caption in part.findall(".//p[@class='caption']")][:3] == [
        "The paper's LRU, its replay unchanged",
        "LRU in which only a use renews an expert",
        "Eviction by predicted next use",
    ]
    first = tables_of(part)[0][0]
    starts = {"Hit rate, ours": "74.2", "Hit rate, published": "72.8", "Difference": "+1.4\u00a0points ["}
    for heading, start in (starts | {"Difference in MiB": "\u221219 ["}).items():
        assert first[heading].startswith(start)


def test_fixed_sentences_and_other_models(tree):
    text = text_of(tree)
    assert "No lossless policy can be faster than the clairvoyant bound; a lossy one can" in text
    assert "In int8: token step 1 MiB instead of 4, 0.110 points of recall lost." in text
    # a policy that the traces do not allow
    assert text_of(section(tree, "explorer")).count("Cache-prior routing: no router weights") == 1
    (rows,) = tables_of(section(tree, "models"))
    assert [(row["Model"], row["All, MiB"]) for row in rows] == [("chance", "0.153"), ("other/model", "\u2013")]


def test_the_search_shows_every_trial_and_rings_the_chosen_one(tree):
    figure = tree.find(".//figure[@id='figure-pareto']")
    (rows,) = tables_of(figure)
    assert [row["Trial"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[-1]["Reason"] == "ended early"
    (chosen,) = figure.findall(".//tr[@class='chosen']")
    assert chosen.findtext("th") == "2"
    spec = json.loads(figure.findtext(".//script"))
    # trial 1 is slower than trial 0 and names fewer experts
    marks = [(row["trial"], row["on_front"], row["chosen"]) for row in max(spec["datasets"].values(), key=len)]
    assert marks == [(0, True, False), (1, False, False), (2, True, True)]


def test_the_stand_in_and_a_single_split_are_said(rendered, copy):
    assert "small stand-in" in page(rendered)
    assert "one test split" not in page(rendered)
    assert "small stand-in" not in html_of(rendered, source="import")
    rewrite(copy, lambda frame: frame.filter(split="test_in_domain"))
    text = text_of(tree_of(copy))
    assert "There is one test split" in text
    assert "Laptop, NVMe (no recording), 16 experts (10\u00a0%), same domain" in text


def test_the_method_says_how_prefill_was_replayed_and_what_was_assumed(rendered):
    assert "each decoded token another" in page(rendered)
    assert "timed as if it had 8.25 MiB" in page(rendered)
    html = html_of(rendered, prefill="token_by_token", timed_expert_mib=None, lookahead_layers=5)
    assert "Every token is a step, those of the prefill too" in html
    assert "timed as if it had" not in html
    assert "for at most 5 layers" in html


def test_without_times_the_page_says_so_and_shows_the_upper_bound(tmp_path):
    write_example(tmp_path, times=False)
    made = compose(run_of(tmp_path), SMALL)
    assert made.plots["ms_per_token.csv"].is_empty()
    tree = Tree(made.html).root
    assert tree.findtext(".//h1") == "No times, so no verdict on the predictor"
    assert text_of(tree).count("Nothing was timed in this run") == 3
    assert "Nothing was timed, or at one capacity alone" in text_of(tree)
    (rows,) = tables_of(section(tree, "explorer"))
    assert {(row["ms per token"], row[UPPER_BOUND]) for row in rows} == {("\u2013", "15.0\u00a0%")}
    explored = json.loads(section(tree, "explorer").findtext(".//script"))
    assert all("main" in row["in"] for row in explored["states"]["test_in_domain"][""][0]["rows"])


def test_without_published_predictions_the_paper_is_left_out_with_a_reason(tmp_path):
    write_example(tmp_path, published=False)
    tree = tree_of(tmp_path)
    assert "These traces carry no published predictions." in text_of(section(tree, "paper"))
    assert not tables_of(section(tree, "paper"))
    assert "against the published predictions" not in text_of(section(tree, "verdict"))


def test_one_capacity_gives_no_curve(copy):
    rewrite(copy, lambda frame: frame.filter(capacity_experts=16), "pays")
    assert "a curve needs two" in text_of(section(tree_of(copy), "time"))


def test_text_from_tables_cannot_become_markup(copy):
    attack = "</script><script>alert(1)</script><b>"
    rewrite(copy, lambda frame: frame.with_columns(pl.col("title").replace("MoTE", attack)))
    card = copy / "reports/assess/card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"model_id": attack, "reasons": [attack]}))
    assert "<script>alert" not in html_of(copy)
    tree = tree_of(copy)
    assert tree.find(".//b") is None
    assert attack in text_of(section(tree, "explorer"))
    assert attack in text_of(section(tree, "routing"))


def test_a_page_that_is_too_large_is_refused_and_the_old_one_stays(rendered, copy):
    # as many experts as the largest models have, to pass the limit
    cells = [(layer, expert, 1 / 512) for layer in range(94) for expert in range(512)]
    path = copy / "reports/assess/tables/popularity.parquet"
    pl.DataFrame(cells, ["layer", "expert", "share"], orient="row").write_parquet(path)
    with pytest.raises(InputError, match=r"reports/index\.html: \d+ bytes, more than report\.max_page_bytes"):
        render_report(copy, run_of(copy), ReportSettings(max_page_bytes=1_500_000))
    assert page(copy) == page(rendered)


def test_tables_for_dvc_hold_a_column_a_line(rendered, run):
    times, hit_rates, horizons, layers = (
        pl.read_csv(rendered / f"reports/figures/{name}.csv")
        for name in ("ms_per_token", "hit_rate_on_device", "recall_by_horizon", "recall_by_layer")
    )
    assert times.columns == ["capacity_experts", "ours", "best", "lru", "bound"]
    timed = run.tables["on_device"].filter(split=run.split, device="laptop_nvme").sort("capacity_experts")
    assert times["ours"].to_list() == timed.filter("ours")["ms_per_token"].to_list()
    expected = timed.filter(policy="lru").select(lru="ms_per_token", bound="bound_ms_per_token")
    assert times.select("lru", "bound").equals(expected)
    assert hit_rates["bound"].to_list() == [0.75] * 4
    assert (horizons.columns, layers["layer"].to_list()) == (["layer", "token", "1", "2"], [1, 2, 3, 4])
    assert {"predictor", "token unigram", "previous token", "popularity"} < set(layers.columns)


def test_every_section_has_its_words(run):
    for part in sections_of(run):
        assert all((part.blocks, part.short, part.title))
        assert "{" not in part.lead


def test_the_page_says_how_far_modelled_times_were_from_recorded_ones(tree):
    rows = next(rows for rows in tables_of(section(tree, "method")) if "Rows predicted" in rows[0])
    assert len(rows) == published_errors().height
    assert [row["Regime"] for row in rows] == published_errors()["regime"].to_list()


def test_the_page_says_what_pinning_was_worth_on_published_traces(tree):
    rows = next(rows for rows in tables_of(section(tree, "method")) if "Profile from" in rows[0])
    assert len(rows) == published_pinning().height
    assert [row["What to do"] for row in rows] == published_pinning()["verdict"].to_list()


def test_hidden_states_stand_beside_the_same_predictor_without_and_the_next_gate(tree):
    first, *folded = tables_of(section(tree, "hidden"))
    assert [(row["Ahead"], row["Predictor"], row["recall@3"].split()[0]) for row in first] == [
        ("before the token", "Predictor", "80.0"),
        ("before the token", "Predictor without hidden states", "80.0"),
        ("1 layer", "Predictor", "90.0"),
        ("1 layer", "Predictor without hidden states", "84.0"),
        ("1 layer", "Next gate", "80.0"),
    ]
    assert first[2]["On LRU's misses"].startswith("88.0")
    assert {row["Text"] for rows in folded for row in rows if "Text" in row} == {"prefill", "decode"}


def test_without_hidden_states_the_page_says_so(copy):
    path = copy / "reports/export/tables/hidden.parquet"
    pl.read_parquet(path).clear().write_parquet(path)
    assert "carry no hidden states" in "".join(section(tree_of(copy), "hidden").itertext())
