"""The page as HTML: whole, true to its tables, the same bytes in every process, and standing where tables are empty."""

import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from moe_beyond.errors import InputError
from moe_beyond.reporting.page import compose, render_report, sections_of
from moe_beyond.reporting.read import Run
from moe_beyond.reporting.settings import ReportSettings
from moe_beyond.reporting.text import number
from tests.reporting.conftest import SMALL, html_of, run_of
from tests.reporting.example import POLICIES, write_example

VOID = {"meta", "link", "input", "br", "hr", "img"}
ROOT = Path(__file__).parents[2]
RENDER = """
import sys
from pathlib import Path
from moe_beyond.reporting.page import render_report
from tests.reporting.conftest import SMALL, run_of
root = Path(sys.argv[1])
render_report(root, run_of(root), SMALL)
"""


class Node:
    def __init__(self, tag: str, attributes: dict[str, str], parent: "Node | None") -> None:
        self.tag, self.attributes, self.parent = tag, attributes, parent
        self.children: list[Node] = []
        self.own = ""

    @property
    def text(self) -> str:
        return self.own + "".join(child.text for child in self.children)

    def all(self, tag: str) -> "list[Node]":
        found = [self] if self.tag == tag else []
        return found + [node for child in self.children for node in child.all(tag)]


class Tree(HTMLParser):
    """Parses strictly enough to notice an element that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = self.here = Node("root", {}, None)
        self.feed(text)
        assert self.here is self.root, f"{self.here.tag} is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {key: value or "" for key, value in attrs}, self.here)
        self.here.children.append(node)
        if tag not in VOID:
            self.here = node

    def handle_endtag(self, tag: str) -> None:
        assert self.here.tag == tag, f"</{tag}> ends {self.here.tag}"
        assert self.here.parent is not None
        self.here = self.here.parent

    def handle_data(self, data: str) -> None:
        self.here.own += data


def page(root: Path) -> str:
    return (root / "reports" / "index.html").read_text(encoding="utf-8")


def tables_of(node: Node) -> list[list[dict[str, str]]]:
    """Rows of every table by heading."""
    found = []
    for table in node.all("table"):
        head, *rows = [[cell.text for cell in row.all("th") + row.all("td")] for row in table.all("tr")]
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def section(tree: Node, anchor: str) -> Node:
    return next(node for node in tree.all("section") if node.attributes["id"] == anchor)


@pytest.fixture(scope="module")
def tree(rendered: Path) -> Node:
    return Tree(page(rendered)).root


def test_ids_are_unique_and_every_link_leads_somewhere(rendered: Path, tree: Node):
    def ids_of(node: Node) -> list[str]:
        own = [node.attributes["id"]] if "id" in node.attributes else []
        return own + [found for child in node.children for found in ids_of(child)]

    ids = ids_of(tree)
    assert len(ids) == len(set(ids))
    for link in (node.attributes["href"] for node in tree.all("a")):
        if link.startswith("#"):
            assert link[1:] in ids
        else:
            assert (rendered / "reports" / link).is_file(), link


def test_headings_descend_without_gaps(tree: Node):
    def in_order(node: Node) -> list[Node]:
        return [node, *(found for child in node.children for found in in_order(child))]

    levels = [int(node.tag[1]) for node in in_order(tree) if re.fullmatch("h[1-6]", node.tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_page_is_the_same_to_the_byte_in_every_process(rendered: Path, copy: Path):
    """Whatever the hash seed, and however often charts were drawn before."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        subprocess.run([sys.executable, "-c", RENDER, str(copy)], check=True, env=environment, cwd=ROOT)
        assert digests(copy) == digests(rendered)


def digests(root: Path) -> dict[str, str]:
    made = [root / "reports/index.html", *sorted((root / "reports/figures").iterdir())]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made}


def test_nothing_that_a_run_measured_or_that_names_it_is_shown(rendered: Path):
    text = page(rendered).split("<body>")[1].split('id="theme"')[0]
    for trace in (r"0\.0854", "run_id", "mlflow", r"git\.commit", str(rendered), r"3\.11\.\d", r"20\d\d-\d\d-\d\d"):
        assert not re.search(trace, text), trace


def test_the_two_hit_rates_have_their_two_names_and_no_third(tree: Node):
    names = {heading for rows in tables_of(tree) for heading in rows[0] if "hit rate" in heading.lower()}
    names -= {"Hit rate, ours", "Hit rate, published", "Hit rate"}  # the paper's own replay, on its unlimited link
    assert names == {"Hit rate on the device", "Hit rate, unlimited link (upper bound)"}
    assert {"Hit rate"} <= {heading for rows in tables_of(section(tree, "paper")) for heading in rows[0]}


def test_the_explorer_never_mixes_the_two_hit_rates(tree: Node, run: Run):
    (rows,) = tables_of(section(tree, "explorer"))
    assert {row["Policy"] for row in rows} == {title for title, *_ in POLICIES.values()}
    for row in rows:
        assert row["Hit rate on the device"] == "11.0\u00a0%"
        assert row["Hit rate, unlimited link (upper bound)"] == "12.5\u00a0%"
    lossy = {row["Policy"]: row["Router weight lost"] for row in rows if row["Router weight lost"] != "\u2013"}
    assert lossy == {"MoTE": "40.00\u00a0%"}
    timed = run.at(run.split, "laptop_nvme")
    assert [row["ms per token"] for row in rows] == [number(ms) for ms in timed["ms_per_token"]]


def test_a_charged_latency_stands_in_every_table_of_times(tree: Node):
    timed = [rows[0] for rows in tables_of(tree) if any(heading.startswith("ms per token") for heading in rows[0])]
    assert len(timed) > 15
    for row in timed:
        assert any("harged" in heading for heading in row), row


def test_the_paper_is_compared_in_one_cache_a_row_its_own_first(tree: Node):
    part = section(tree, "paper")
    captions = [node.text.split(":")[0] for node in part.all("p") if node.attributes.get("class") == "caption"]
    assert captions[0] == "The paper's LRU, its replay unchanged"
    assert captions[1:3] == ["LRU in which only a use renews an expert", "Eviction by predicted next use"]
    first = tables_of(part)[0][0]
    assert first["Hit rate, ours"].startswith("74.2")
    assert first["Hit rate, published"].startswith("72.8")
    assert first["Difference"].startswith("+1.4\u00a0points [")
    assert first["Difference in MiB"].startswith("\u221219 [")


def test_policies_that_the_traces_do_not_allow_are_named_once(tree: Node):
    assert section(tree, "explorer").text.count("Cache-prior routing: no router weights") == 1


def test_fixed_sentences_and_other_models(tree: Node):
    assert "No lossless policy can be faster than the clairvoyant bound; a lossy one can" in tree.text
    assert "In int8: token step 1 MiB instead of 4, 0.110 points of recall lost." in tree.text
    (rows,) = tables_of(section(tree, "models"))
    assert [(row["Model"], row["All, MiB"]) for row in rows] == [("chance", "0.153"), ("other/model", "\u2013")]


def test_the_search_shows_every_trial_and_rings_the_chosen_one(tree: Node):
    figure = next(node for node in tree.all("figure") if node.attributes["id"] == "figure-pareto")
    (rows,) = tables_of(figure)
    assert [row["Trial"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["Reason"] for row in rows][-1] == "ended early"
    (chosen,) = [node for node in figure.all("tr") if node.attributes.get("class") == "chosen"]
    assert chosen.all("th")[0].text == "2"
    spec = json.loads(figure.all("script")[0].text)
    drawn = max(spec["datasets"].values(), key=len)
    # trial 1 is slower than trial 0 and names fewer experts
    marks = [(row["trial"], row["on_front"], row["chosen"]) for row in drawn]
    assert marks == [(0, True, False), (1, False, False), (2, True, True)]


def test_the_stand_in_and_a_single_split_are_said(rendered: Path, copy: Path):
    assert "small stand-in" in page(rendered)
    assert "one test split" not in page(rendered)
    assert "small stand-in" not in html_of(rendered, source="import")
    for name in ("unlimited_link", "on_device"):
        path = copy / f"reports/simulate/tables/{name}.parquet"
        pl.read_parquet(path).filter(split="test_in_domain").write_parquet(path)
    text = Tree(html_of(copy)).root.text
    assert "There is one test split" in text
    assert "Laptop, NVMe, 16 experts (10\u00a0%), same domain" in text


def test_the_method_says_how_prefill_was_replayed_and_what_was_assumed(rendered: Path):
    assert "each decoded token another" in page(rendered)
    assert "Every token is a step, those of the prefill too" in html_of(rendered, prefill="token_by_token")
    assert "timed as if it had 8.25 MiB" in page(rendered)
    assert "timed as if it had" not in html_of(rendered, timed_expert_mib=None)
    assert "for at most 5 layers" in html_of(rendered, lookahead_layers=5)


def test_without_times_the_page_says_so_and_shows_the_upper_bound(tmp_path: Path):
    write_example(tmp_path, times=False)
    made = compose(run_of(tmp_path), SMALL)
    assert made.plots["ms_per_token.csv"].is_empty()
    tree = Tree(made.html).root
    assert tree.all("h1")[0].text == "No times, so no verdict on the predictor"
    assert tree.text.count("Nothing was timed in this run") == 3
    assert "Nothing was timed, or at one capacity alone" in tree.text
    (rows,) = tables_of(section(tree, "explorer"))
    assert {row["ms per token"] for row in rows} == {"\u2013"}
    assert {row["Hit rate, unlimited link (upper bound)"] for row in rows} == {"15.0\u00a0%"}
    explored = json.loads(section(tree, "explorer").all("script")[0].text)
    assert all("main" in row["in"] for row in explored["states"]["test_in_domain"][""][0]["rows"])


def test_without_published_predictions_the_paper_is_left_out_with_a_reason(tmp_path: Path):
    write_example(tmp_path, published=False)
    tree = Tree(html_of(tmp_path)).root
    assert "These traces carry no published predictions." in section(tree, "paper").text
    assert not section(tree, "paper").all("table")
    assert "against the published predictions" not in section(tree, "verdict").text


def test_one_capacity_gives_no_curve(copy: Path):
    for name in ("unlimited_link", "on_device", "pays"):
        path = copy / f"reports/simulate/tables/{name}.parquet"
        pl.read_parquet(path).filter(capacity_experts=16).write_parquet(path)
    assert "a curve needs two" in section(Tree(html_of(copy)).root, "time").text


def test_text_from_tables_cannot_become_markup(copy: Path):
    attack = "</script><script>alert(1)</script><b>"
    for name in ("on_device", "unlimited_link"):
        path = copy / f"reports/simulate/tables/{name}.parquet"
        pl.read_parquet(path).with_columns(pl.col("title").replace("MoTE", attack)).write_parquet(path)
    card = copy / "reports/assess/card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"model_id": attack, "reasons": [attack]}))
    html = html_of(copy)
    assert "<script>alert" not in html
    tree = Tree(html).root
    assert not tree.all("b")
    assert attack in section(tree, "explorer").text
    assert attack in section(tree, "routing").text


def test_a_policy_that_nobody_has_heard_of_needs_no_edit(copy: Path):
    for name in ("on_device", "unlimited_link"):
        path = copy / f"reports/simulate/tables/{name}.parquet"
        new = {"policy": pl.col("policy").replace("fifo", "x7"), "title": pl.col("title").replace("FIFO", "X-Seven")}
        pl.read_parquet(path).with_columns(**new).write_parquet(path)
    (rows,) = tables_of(section(Tree(html_of(copy)).root, "explorer"))
    assert [row["Kind"] for row in rows if row["Policy"] == "X-Seven"] == ["on demand"]


def test_a_page_that_is_too_large_is_refused_and_the_old_one_stays(rendered: Path, copy: Path):
    # as many experts as the largest models have, to pass the limit
    cells = [(layer, expert, 1 / 512) for layer in range(94) for expert in range(512)]
    path = copy / "reports/assess/tables/popularity.parquet"
    pl.DataFrame(cells, ["layer", "expert", "share"], orient="row").write_parquet(path)
    with pytest.raises(InputError, match=r"reports/index\.html: \d+ bytes, more than report\.max_page_bytes"):
        render_report(copy, run_of(copy), ReportSettings(max_page_bytes=1_500_000))
    assert page(copy) == page(rendered)


def test_tables_for_dvc_hold_a_column_a_line(rendered: Path, run: Run):
    folder = rendered / "reports" / "figures"
    times = pl.read_csv(folder / "ms_per_token.csv")
    assert times.columns == ["capacity_experts", "ours", "best", "lru", "bound"]
    timed = run.tables["on_device"].filter(split=run.split, device="laptop_nvme", policy="lru").sort("capacity_experts")
    assert times["lru"].to_list() == timed["ms_per_token"].to_list()
    assert times["bound"].to_list() == timed["bound_ms_per_token"].to_list()
    assert pl.read_csv(folder / "hit_rate_on_device.csv")["bound"].to_list() == [0.75] * 4
    assert pl.read_csv(folder / "recall_by_horizon.csv").columns == ["layer", "token", "1", "2"]
    layers = pl.read_csv(folder / "recall_by_layer.csv")
    assert layers["layer"].to_list() == [1, 2, 3, 4]
    assert {"predictor", "token unigram", "previous token", "popularity"} < set(layers.columns)


def test_every_section_has_its_words(run: Run):
    for part in sections_of(run):
        assert all((part.blocks, part.short, part.title))
        assert "{" not in part.lead
