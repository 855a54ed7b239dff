"""Turns the tables of all stages into the page and its figures."""

from pathlib import Path

from moe_beyond.capture.settings import TracesSettings
from moe_beyond.reporting.page import render_report
from moe_beyond.reporting.read import read_run
from moe_beyond.reporting.settings import ReportSettings
from moe_beyond.settings import Seed, Settings
from moe_beyond.simulator.study.settings import SimulateSettings


class Params(Settings):
    seed: Seed
    traces: TracesSettings
    simulate: SimulateSettings = SimulateSettings()
    report: ReportSettings = ReportSettings()


def main(root: Path, params: Params) -> None:
    render_report(root, read_run(root, params.seed, params.traces, params.simulate), params.report)
