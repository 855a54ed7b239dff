"""Assess from the traces alone whether offloading this model's experts pays: the suitability card."""

from pathlib import Path

from moe_beyond.assess.assessment import assess, cards_table, in_domain, other_cards
from moe_beyond.assess.settings import AssessSettings
from moe_beyond.files import write_json, write_tables
from moe_beyond.settings import Settings
from moe_beyond.traces import store

REPORTS = Path("reports/assess")


class Params(Settings):
    assess: AssessSettings = AssessSettings()


def main(root: Path, params: Params) -> None:
    settings = params.assess
    assessment = assess(in_domain(store.read_parquet(root / "data/traces", hidden=False)), settings)
    cards = cards_table([assessment.card, *other_cards(settings)])
    write_tables(root / REPORTS / "tables", assessment.tables | {"cards": cards})
    write_json(root / REPORTS / "card.json", assessment.card)
    write_json(root / REPORTS / "metrics.json", assessment.metrics())
