"""Parameters of the page: the section `report` of params.yaml."""

from __future__ import annotations

from pydantic import Field

from moe_beyond.settings import Settings


class ReportSettings(Settings):
    """What the page puts first, and how large its pictures are."""

    title: str = Field(default="MoE-Beyond", min_length=1)
    chart_width: int = Field(default=760, ge=320, le=2400)
    """Width of the PNG figures in CSS pixels."""
    figure_scale: float = Field(default=2.0, ge=1, le=4)
    """Pixels per CSS pixel in the PNG figures."""
    max_page_bytes: int = Field(default=5_000_000, ge=1_500_000)
    """The stage fails rather than write a larger page."""
