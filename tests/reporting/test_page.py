import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from moe_beyond.errors import InputError
from moe_beyond.reporting.blocks import Absent, Block, DataTable, Figure, Folded, Section
from moe_beyond.reporting.page import sections_of
from moe_beyond.reporting.settings import ReportSettings
from moe_beyond.reporting.tables import LAYOUT, Table, Tables
from moe_beyond.reporting.text import number, percent
from tests.reporting.conftest import FACTS, html_of, render
from tests.reporting.example import write_example

VOID = {"meta", "link", "input", "br", "hr", "img"}


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


@pytest.fixture(scope="module")
def tree(project: Path) -> Node:
    return Tree(page(project)).root


def verdict_of(tree: Node) -> str:
    return next(node.text for node in tree.all("p") if node.attributes.get("class") == "because")


def body_of(figure: Node) -> list[list[str]]:
    (table,) = figure.all("table")
    return [[cell.text for cell in row.all("th") + row.all("td")] for row in table.all("tr")]


def test_writes_the_page_its_figures_and_tables_for_dvc(project: Path, tmp_path: Path):
    shutil.copytree(project, tmp_path / "copy")
    written = render(tmp_path / "copy")
    assert written[0] == tmp_path / "copy" / "reports" / "index.html"
    assert all(path.stat().st_size > 0 for path in written)
    folder = tmp_path / "copy" / "reports" / "figures"
    assert sorted(written[1:]) == sorted(folder.iterdir())
    pictures = sorted(path.stem for path in folder.glob("*.png"))
    assert len(pictures) == 27
    assert sorted(path.stem for path in folder.glob("*.svg")) == pictures


def test_renders_the_same_bytes_again(project: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    for path in render(copy):
        assert path.read_bytes() == (project / path.relative_to(copy)).read_bytes(), path.name


def test_needs_nothing_from_the_network_and_stays_small(project: Path, tree: Node):
    text = page(project)
    assert len(text.encode()) < 3_000_000
    for attribute in ("src", "href", "action", "data", "poster", "srcset"):
        for node in tree.all("link") + tree.all("script") + tree.all("img") + tree.all("a") + tree.all("form"):
            assert not re.match(r"(https?:)?//", node.attributes.get(attribute, "")), node.attributes
    style = "".join(node.text for node in tree.all("style"))
    assert "@import" not in style
    assert "url(" not in style


def test_every_link_leads_somewhere(project: Path, tree: Node):
    ids = [
        node.attributes["id"]
        for tag in ("main", "section", "h2", "figure", "div", "button")
        for node in tree.all(tag)
        if "id" in node.attributes
    ]
    assert len(ids) == len(set(ids))
    links = [node.attributes["href"] for node in tree.all("a")]
    assert len(links) > 40
    for link in links:
        if link.startswith("#"):
            assert link[1:] in ids
        else:
            assert (project / "reports" / link).resolve().is_file(), link


def test_every_chart_has_words_a_picture_and_its_numbers(project: Path, tree: Node):
    figures = tree.all("figure")
    assert len(figures) == 27
    for figure in figures:
        chart = next(node for node in figure.all("div") if node.attributes.get("class") == "chart")
        assert chart.attributes["role"] == "img"
        assert len(chart.attributes["aria-label"]) > 40
        assert len(body_of(figure)) > 2
        assert (project / "reports" / "figures" / f"{figure.attributes['id']}.png").is_file()


def test_cells_are_the_numbers_of_the_named_file(project: Path, tree: Node):
    replay = pl.read_csv(project / "reports" / "simulate" / "replay.csv")
    for value, figure_name, write in (("hit_rate", "hit_rate", percent), ("mib_per_token", "bytes_per_token", number)):
        for split in ("test_in_domain", "test_out_of_domain"):
            part = replay.filter(pl.col("split") == split)
            figure = next(f for f in tree.all("figure") if f.attributes["id"] == f"{figure_name}_{split}")
            head, *rows = body_of(figure)
            column = head.index("LRU")
            lru = part.filter(pl.col("policy") == "lru").sort("capacity_experts")
            assert [row[column] for row in rows] == [write(x) for x in lru[value].to_list()]


def test_headings_descend_without_gaps(tree: Node):
    levels = [int(node.tag[1]) for node in in_order(tree) if re.fullmatch("h[1-6]", node.tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def in_order(node: Node) -> list[Node]:
    return [node, *(found for child in node.children for found in in_order(child))]


def test_names_the_runs_behind_the_files(tree: Node):
    run = next(node for node in tree.all("section") if node.attributes.get("id") == "run")
    for words in ("0123abc", "traces.source", "0.1, 0.2", "2.13.0", "reports/train/run.json", b"train".hex()):
        assert words in run.text


def test_the_top_says_what_was_run(tree: Node):
    (ran,) = [node for node in tree.all("p") if node.attributes.get("class") == "ran"]
    assert ran.text.startswith(
        "3,112 tokens of 28 prompts (synthetic); of these, tested on 240 of held-out prompts of the same domain; "
        "commit 0123abc."
    )


def test_the_stand_in_is_called_one(project: Path, tmp_path: Path):
    assert "small stand-in" in page(project)
    shutil.copytree(project, tmp_path / "copy")
    imported = FACTS | {"Parameters": {"traces.source": "import"}}
    assert "small stand-in" not in html_of(tmp_path / "copy", imported)


def test_the_method_says_how_prefill_was_replayed(project: Path):
    assert "prefill is one step and each decoded token is one step" in page(project)
    one_by_one = html_of(project, FACTS | {"Parameters": {"simulate.prefill": "token_by_token"}})
    assert "Every token is one step, those of the prefill too" in one_by_one


def test_an_empty_project_gives_reasons_and_no_figures(tmp_path: Path):
    written = render(tmp_path)
    assert [path.name for path in written] == ["index.html"]
    text = page(tmp_path)
    assert "<figure" not in text
    tree = Tree(text).root
    for path in (
        "simulate/replay.csv",
        "export/quality.csv",
        "tune/trials.csv",
        "train/history.csv",
        "assess/card.json",
    ):
        assert f"reports/{path} was not written" in tree.text
    assert "no stage has left a receipt" in tree.text


def blocks_in(blocks: Iterable[Block]) -> list[Block]:
    return [inner for block in blocks for inner in (blocks_in(block.blocks) if isinstance(block, Folded) else [block])]


@pytest.fixture(scope="module")
def whole(tables: Tables) -> list[Section]:
    return sections_of(tables, 0.1, FACTS)


@pytest.mark.parametrize("name", sorted(set(LAYOUT) - {"left_out"}))
def test_a_missing_table_leaves_its_part_out_with_a_reason(tables: Tables, whole: list[Section], name: str):
    """Nothing is drawn of it or drawn empty, and every figure of another table stays."""
    path = LAYOUT[name][0]
    reason = f"{path} was not written"
    sections = sections_of(replace(tables, csv=tables.csv | {name: Table(path, None, reason)}), 0.1, FACTS)
    blocks = blocks_in(block for section in sections for block in section.blocks)
    assert [block for block in blocks if isinstance(block, Absent) and block.reason == reason]
    before = {figure.name: figure for section in whole for figure in section.figures}
    after = {figure.name: figure for section in sections for figure in section.figures}
    assert set(after) == {key for key, figure in before.items() if figure.table.source != path}
    for block in blocks:
        table = block.table if isinstance(block, Figure) else block
        if isinstance(table, DataTable):
            assert table.source != path
            assert table.rows
    assert all(section.blocks for section in sections)


def test_one_split_only_is_said_and_the_rest_still_stands(project: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    for name in ("simulate/replay", "export/quality", "simulate/timing", "simulate/comparisons"):
        path = copy / "reports" / f"{name}.csv"
        pl.read_csv(path).filter(pl.col("split") == "test_in_domain").write_csv(path)
    tree = Tree(html_of(copy)).root
    assert "hit_rate_test_in_domain" in [figure.attributes["id"] for figure in tree.all("figure")]
    assert "the traces hold no prompts of another domain" in tree.text
    assert "There is one test split only" in tree.text
    assert "on held-out prompts of the same domain" in verdict_of(tree)


def test_a_table_of_one_capacity_becomes_a_table_not_a_curve(project: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    path = copy / "reports" / "simulate" / "replay.csv"
    pl.read_csv(path).filter(pl.col("capacity_experts") == 32).write_csv(path)
    tree = Tree(html_of(copy)).root
    assert not [figure for figure in tree.all("figure") if figure.attributes["id"].startswith("hit_rate")]
    assert "has one capacity for test_in_domain, and a curve needs two" in tree.text


def test_text_from_tables_cannot_become_markup(project: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    attack = "</script><script>alert(1)</script><b>"
    path = copy / "reports" / "simulate" / "replay.csv"
    replay = pl.read_csv(path)
    replay.with_columns(pl.col("policy").replace("lru", attack)).write_csv(path)
    card = copy / "reports" / "assess" / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"model_id": attack, "reasons": [attack]}))
    html = html_of(copy)
    assert "<script>alert" not in html
    tree = Tree(html).root
    assert len(tree.all("b")) == 0
    assert attack in tree.all("h1")[0].parent.text  # type: ignore[union-attr]


def test_figures_of_an_earlier_run_do_not_stay(project: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    (copy / "reports" / "tune" / "trials.csv").unlink()
    render(copy)
    assert not (copy / "reports" / "figures" / "pareto.png").exists()


def test_a_page_that_is_too_large_is_refused_and_the_old_one_stays(project: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    # as many experts as the largest models have, to pass the limit
    frame = pl.DataFrame(
        {"layer": [i // 512 for i in range(94 * 512)], "expert": [i % 512 for i in range(94 * 512)], "share": 1 / 512}
    )
    frame.write_csv(copy / "reports" / "assess" / "popularity.csv")
    with pytest.raises(InputError, match=r"reports/index\.html: \d+ bytes, more than report\.max_page_bytes"):
        render(copy, ReportSettings(max_page_bytes=1_500_000))
    assert page(copy) == page(project)


def test_a_model_of_many_experts_gets_a_table_that_can_be_read(project: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    shares = [[(expert + layer) % 256 for expert in range(256)] for layer in range(3)]
    frame = pl.DataFrame(
        [(layer, expert, share / sum(row)) for layer, row in enumerate(shares) for expert, share in enumerate(row)],
        schema=["layer", "expert", "share"],
        orient="row",
    )
    frame.write_csv(copy / "reports" / "assess" / "popularity.csv")
    figure = next(f for f in Tree(html_of(copy)).root.all("figure") if f.attributes["id"] == "heat_map")
    head, *rows = body_of(figure)
    assert (len(head), len(rows)) == (10, 3)
    # the shares of layer 1 are those of layer 0, one expert earlier
    assert [row[1] for row in rows] == [f"{255 - layer}: {percent(255 / sum(range(256)))}" for layer in range(3)]
    assert [row[-1] for row in rows] == ["1", "1", "1"]


def test_times_are_left_out_with_a_reason_where_none_were_modelled(tmp_path: Path):
    write_example(tmp_path, times=False)
    text = Tree(html_of(tmp_path)).root.text
    assert "reports/simulate/timing.csv was not written" in text
    assert "nothing here says how many tokens per second are gained" in text


def test_what_the_clock_assumes_stands_beside_its_times(project: Path):
    assumed = {"simulate.predictor_latency_ms": 0.5, "simulate.lookahead_layers": 2, "simulate.timed_expert_mib": 8.25}
    text = Tree(html_of(project, {"Parameters": assumed})).root.text
    assert "Assumed: the predictor takes 0.500 ms a token (export measured 0.520 ms)" in text
    assert "at most 2 layers ahead; every expert is timed as if it had 8.25\u00a0MiB" in text
    assert "Assumed:" not in Tree(html_of(project, {})).root.text


def test_a_split_in_which_nothing_was_decoded_has_no_times(project: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    path = copy / "reports" / "simulate" / "timing.csv"
    pl.read_csv(path).with_columns(ms_per_token=0.0, tokens_per_second=0.0).write_csv(path)
    tree = Tree(html_of(copy)).root
    assert "reports/simulate/timing.csv has no split in which tokens were decoded" in tree.text
    assert not [figure for figure in tree.all("figure") if figure.attributes["id"].startswith("time_")]
    assert "Fastest that can be built" not in tree.text


def test_wide_tables_for_dvc_hold_the_same_numbers(project: Path, tables: Tables):
    wide = pl.read_csv(project / "reports" / "figures" / "hit_rate_test_in_domain.csv")
    replay = tables["replay"].rows.filter(pl.col("split") == "test_in_domain")
    for policy in tables.policies:
        mine = replay.filter(pl.col("policy") == policy).sort("capacity_fraction")
        assert wide[policy].to_list() == mine["hit_rate"].to_list()
    layers = pl.read_csv(project / "reports" / "figures" / "recall_by_layer_test_in_domain.csv")
    assert layers["layer"].to_list() == [1, 2, 3, 4, 5]
    assert "token_unigram" in layers.columns
