"""Renders the page and its pictures: `reports/index.html` and `reports/figures/`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import polars as pl
import vl_convert
from markupsafe import Markup

from moe_beyond.errors import InputError
from moe_beyond.files import replacing
from moe_beyond.reporting.blocks import Figure, Section
from moe_beyond.reporting.dvc_tables import dvc_tables
from moe_beyond.reporting.figures import theme
from moe_beyond.reporting.figures.plots import Chart
from moe_beyond.reporting.sections.ablation import ablation_section
from moe_beyond.reporting.sections.beside import models_section, paper_section
from moe_beyond.reporting.sections.break_even import break_even_section
from moe_beyond.reporting.sections.cache import cache_section
from moe_beyond.reporting.sections.contest import comparison_section, timing_section
from moe_beyond.reporting.sections.explorer import explorer_section
from moe_beyond.reporting.sections.model import model_section
from moe_beyond.reporting.sections.pair import pairs_section
from moe_beyond.reporting.sections.policy import policies_section
from moe_beyond.reporting.sections.predictor import predictor_section, search_section, training_section
from moe_beyond.reporting.sections.record import data_section, method_section, run_section
from moe_beyond.reporting.sections.trust import trust_section
from moe_beyond.reporting.sections.why import why_section
from moe_beyond.reporting.settings import ReportSettings
from moe_beyond.reporting.summary import summarise
from moe_beyond.reporting.tables import Tables, read_tables

_VEGA_LITE = "6.4"  # what Altair 6 writes
_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Page:
    """The page as text, with the figures and the tables for DVC that go beside it."""

    html: str
    figures: tuple[Figure, ...]
    wide: dict[str, pl.DataFrame]


def render_report(
    root: Path, settings: ReportSettings, *, headline_capacity: float, run_summary: Mapping[str, Any]
) -> list[Path]:
    """Write the page, its figures as PNG and SVG, and wide tables for DVC's plots.

    Args:
        root: The project's root; tables are read below `reports/` and `data/splits/`.
        settings: Section `report` of the parameters.
        headline_capacity: Share of the model's experts in fast memory that the headline numbers speak of.
        run_summary: What was run, groups of facts by heading (see `record_sections.run_section`). The fact
            `traces.source` of the group `Parameters` tells whether the traced model is the built-in stand-in; the
            group `Code` names the commit and the MLflow run at the page's top.

    Returns:
        Every file written.

    Raises:
        InputError: A table is broken, or the page came out larger than `settings.max_page_bytes`.
    """
    page = compose(read_tables(root), settings, headline_capacity=headline_capacity, run_summary=run_summary)
    size = len(page.html.encode())
    if size > settings.max_page_bytes:
        raise InputError(
            f"reports/index.html: {size} bytes, more than report.max_page_bytes ({settings.max_page_bytes}); replay "
            "fewer capacities or policies, or raise the limit"
        )
    figures = _write_figures(root / "reports" / "figures", page, settings)
    path = root / "reports" / "index.html"
    with replacing(path) as temporary:
        temporary.write_text(page.html, encoding="utf-8")
    return [path, *figures]


def compose(
    tables: Tables, settings: ReportSettings, *, headline_capacity: float, run_summary: Mapping[str, Any]
) -> Page:
    """Make the page without writing anything; arguments as for `render_report`."""
    code = run_summary.get("Code", {})
    summary = summarise(tables, headline_capacity, code if isinstance(code, Mapping) else {})
    sections = sections_of(tables, headline_capacity, run_summary)
    html = (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=settings.title,
            model=_model_name(tables, run_summary),
            summary=summary,
            sections=sections,
            themes={"colours": theme.COLOURS, "config": theme.config()},
            # our own files and a library, not data: the template must not escape them
            vega=Markup(_vega_runtime()),  # noqa: S704
            css=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),  # noqa: S704
            script=Markup((_TEMPLATES / "report.js").read_text(encoding="utf-8")),  # noqa: S704
        )
    )
    return Page(html, tuple(figure for section in sections for figure in section.figures), dvc_tables(tables))


def sections_of(tables: Tables, headline_capacity: float, run_summary: Mapping[str, Any]) -> list[Section]:
    """Everything below the page's top, in order; arguments as for `render_report`."""
    parameters = run_summary.get("Parameters", {})
    parameters = parameters if isinstance(parameters, Mapping) else {}
    stand_in = parameters.get("traces.source") == "reference"
    one_by_one = parameters.get("simulate.prefill") == "token_by_token"
    return [
        explorer_section(tables, headline_capacity),
        policies_section(tables, headline_capacity),
        cache_section(tables, headline_capacity),
        timing_section(tables, parameters, headline_capacity),
        break_even_section(tables),
        comparison_section(tables, headline_capacity),
        ablation_section(tables),
        why_section(tables),
        predictor_section(tables),
        trust_section(tables),
        paper_section(tables),
        search_section(tables),
        training_section(tables),
        model_section(tables),
        pairs_section(tables),
        models_section(tables),
        data_section(tables),
        method_section(tables, headline_capacity, stand_in=stand_in, one_by_one=one_by_one),
        run_section(tables, run_summary),
    ]


def chart_spec(chart: Chart) -> dict[str, Any]:
    """A chart as Vega-Lite with colour tokens and without configuration."""
    # a heat map of a large model has more rows than Altair allows unasked
    with alt.data_transformers.enable("default", max_rows=None):
        spec: dict[str, Any] = chart.to_dict()
    spec.pop("config", None)
    return spec


def figure_svg(figure: Figure, width: int) -> str:
    """The figure as SVG in light colours, without a browser.

    Args:
        figure: The figure; its title stands above the chart.
        width: Width of the plot in CSS pixels.
    """
    spec = chart_spec(figure.chart) | {
        "width": width,
        "padding": 16,
        "background": theme.COLOURS["light"]["page"],
        "title": {"text": figure.title, "anchor": "start", "color": "@ink", "fontSize": 15, "offset": 14},
        "config": theme.config(),
    }
    svg: str = vl_convert.vegalite_to_svg(theme.paint(spec, "light"), vl_version=_VEGA_LITE)
    # the library numbers ids through all that it has drawn, and the same figure should be the same file
    found: dict[str, str] = {}
    return re.sub(r'(?<=["#])(gradient_|clip)\d+', lambda at: found.setdefault(at[0], f"{at[1]}{len(found)}"), svg)


def svg_png(svg: str, scale: float) -> bytes:
    """A drawing as PNG, `scale` pixels per CSS pixel."""
    png: bytes = vl_convert.svg_to_png(svg, scale=scale)
    return png


def _write_figures(folder: Path, page: Page, settings: ReportSettings) -> list[Path]:
    """Replace the whole folder, so that no figure of an earlier run stays behind."""
    names = []
    with replacing(folder) as temporary:
        temporary.mkdir()
        for figure in page.figures:
            svg = figure_svg(figure, settings.chart_width)
            (temporary / f"{figure.name}.svg").write_text(svg, encoding="utf-8")
            (temporary / f"{figure.name}.png").write_bytes(svg_png(svg, settings.figure_scale))
            names += [f"{figure.name}.png", f"{figure.name}.svg"]
        for name, frame in page.wide.items():
            frame.write_csv(temporary / name)
            names.append(name)
    return [folder / name for name in names]


def _model_name(tables: Tables, run_summary: Mapping[str, Any]) -> str:
    for values in (tables.card, *tables.metrics.values(), run_summary):
        for key, value in values.items():
            if str(key).split(".")[-1] in ("model", "model_id") and isinstance(value, str) and value:
                return value
    return ""


@cache
def _vega_runtime() -> str:
    """Vega, Vega-Lite and Vega-Embed for the page, once."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", _VEGA_LITE)
    if "</script" in bundle.lower() or "<!--" in bundle:
        raise AssertionError("the bundle would end its script element early")
    return bundle


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["script_json"] = _script_json
    environment.filters["link"] = _link
    environment.filters["spec"] = lambda figure: chart_spec(figure.chart)
    return environment


def _script_json(value: Any) -> Markup:
    """JSON that is safe inside a script element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))  # noqa: S704


def _link(path: str) -> str:
    """A path from the project's root as seen from `reports/index.html`."""
    return path.removeprefix("reports/") if path.startswith("reports/") else f"../{path}"
