"""Renders the page and its pictures: `reports/index.html` and `reports/figures/`.

Its bytes depend on the tables and the parameters alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
import vl_convert
from markupsafe import Markup

from moe_beyond.errors import InputError
from moe_beyond.files import replacing
from moe_beyond.reporting.blocks import Figure, Section
from moe_beyond.reporting.figures.theme import VEGA_LITE, chart_spec, figure_svg, svg_png, theme
from moe_beyond.reporting.read import TOKEN, Run
from moe_beyond.reporting.sections import (
    hidden,
    live,
    method,
    paper,
    pays,
    policies,
    predictor,
    routing,
    timeline,
    verdict,
)
from moe_beyond.reporting.settings import ReportSettings
from moe_beyond.reporting.text import TEMPLATES

_SECTIONS = (
    verdict.verdict_section,
    pays.pays_section,
    policies.explorer_section,
    policies.time_section,
    policies.ablation_section,
    timeline.timeline_section,
    live.live_section,
    predictor.predictor_section,
    hidden.hidden_section,
    paper.paper_section,
    predictor.training_section,
    routing.routing_section,
    routing.models_section,
    method.data_section,
    method.method_section,
)


@dataclass(frozen=True)
class Page:
    """The page as text, its figures, and the tables for DVC's plots by file name."""

    html: str
    figures: tuple[Figure, ...]
    plots: dict[str, pl.DataFrame]


def render_report(root: Path, run: Run, settings: ReportSettings) -> None:
    """Write the page, its figures as PNG and SVG, and the tables for DVC's plots.

    Raises:
        InputError: The page came out larger than `settings.max_page_bytes`.
    """
    page = compose(run, settings)
    size = len(page.html.encode())
    if size > settings.max_page_bytes:
        raise InputError(
            f"reports/index.html: {size} bytes, more than report.max_page_bytes ({settings.max_page_bytes}); replay "
            "fewer capacities or policies, or raise the limit"
        )
    with replacing(root / "reports" / "figures") as folder:
        folder.mkdir()
        for figure in page.figures:
            svg = figure_svg(figure, settings.chart_width)
            (folder / f"{figure.name}.svg").write_text(svg, encoding="utf-8")
            (folder / f"{figure.name}.png").write_bytes(svg_png(svg, settings.figure_scale))
        for name, frame in page.plots.items():
            frame.write_csv(folder / name)
    with replacing(root / "reports" / "index.html") as file:
        file.write_text(page.html, encoding="utf-8")


def compose(run: Run, settings: ReportSettings) -> Page:
    """Make the page without writing anything."""
    sections = sections_of(run)
    html = (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=settings.title,
            model=run.card["model_id"],
            sections=sections,
            theme=theme(),
            # our own files and a library, not data: the template must not escape them
            vega=Markup(_vega_runtime()),  # noqa: S704
            script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),  # noqa: S704
        )
    )
    return Page(html, tuple(figure for section in sections for figure in section.figures), dvc_plots(run))


def sections_of(run: Run) -> list[Section]:
    """All of the page in order."""
    return [section(run) for section in _SECTIONS]


def dvc_plots(run: Run) -> dict[str, pl.DataFrame]:
    """A column a line: DVC draws them and compares revisions. Of the headline's device, and the split that leads."""
    frame = policies.over_capacity(run, run.split, run.devices[0] if run.devices else "")
    layers = predictor.by_layer(run, run.split)
    own, others = layers.filter(predictor=run.predictor), layers.filter(horizon=TOKEN)
    drawn = {
        "ms_per_token": (frame, "capacity_experts", "role", "ms_per_token"),
        "hit_rate_on_device": (frame, "capacity_experts", "role", "hit_rate"),
        "recall_by_layer": (others, "layer", "predictor", "recall_at_k"),
        "recall_by_horizon": (own, "layer", "horizon", "recall_at_k"),
    }
    return {
        f"{name}.csv": rows.sort(x, maintain_order=True).pivot(on, index=x, values=y, maintain_order=True)
        for name, (rows, x, on, y) in drawn.items()
    }


@cache
def _vega_runtime() -> str:
    """Vega, Vega-Lite and Vega-Embed for the page, once."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    if "</script" in bundle.lower() or "<!--" in bundle:
        raise AssertionError("the bundle would end its script element early")
    return bundle


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["script_json"] = _script_json
    environment.filters["spec"] = lambda figure: chart_spec(figure.chart)
    return environment


def _script_json(value: Any) -> Markup:
    """JSON that is safe inside a script element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))  # noqa: S704
