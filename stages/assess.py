"""Say from the traces alone whether offloading this model's experts pays: the suitability card."""

from pathlib import Path

import numpy as np
import polars as pl

from moe_beyond.assessment import assess
from moe_beyond.files import replacing, write_json
from moe_beyond.traces import store
from moe_beyond.tracking import stage_run

TRACES = Path("data/traces")


def main() -> None:
    with stage_run("assess") as run:
        trace = store.read_parquet(TRACES)
        # the verdict must not look at domains that are kept for testing
        in_domain = trace.select(np.nonzero(~trace.held_out_P)[0])
        assessment = assess(in_domain if in_domain.num_prompts else trace, run.params.assess)
        tables: dict[str, pl.DataFrame] = {
            "layers": assessment.layers,
            "popularity": assessment.popularity,
            "hit_curves": assessment.hit_curves,
            "reuse_distances": assessment.reuse_distances,
        }
        for name, table in tables.items():
            with replacing(run.reports / f"{name}.csv") as temporary:
                table.write_csv(temporary)
        write_json(run.reports / "card.json", assessment.card)
        run.write_metrics(assessment.metrics())


if __name__ == "__main__":
    main()
