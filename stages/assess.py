"""Say from the traces alone whether offloading this model's experts pays: the suitability card."""

from pathlib import Path

import polars as pl

from moe_beyond.assessment import assess, cards_table, in_domain, other_cards
from moe_beyond.files import replacing, write_json
from moe_beyond.traces import store
from moe_beyond.tracking import stage_run

TRACES = Path("data/traces")


def main() -> None:
    with stage_run("assess") as run:
        settings = run.params.assess
        assessment = assess(in_domain(store.read_parquet(TRACES)), settings)
        tables: dict[str, pl.DataFrame] = {
            "layers": assessment.layers,
            "popularity": assessment.popularity,
            "hit_curves": assessment.hit_curves,
            "reuse_distances": assessment.reuse_distances,
            "coactivation": assessment.coactivation,
            "transitions": assessment.transitions,
            "cards": cards_table([assessment.card, *other_cards(settings)]),
        }
        for name, table in tables.items():
            with replacing(run.reports / f"{name}.csv") as temporary:
                table.write_csv(temporary)
        write_json(run.reports / "card.json", assessment.card)
        run.write_metrics(assessment.metrics())


if __name__ == "__main__":
    main()
