"""Divide the traces by distinct prompt; later stages see only the splits they may see."""

from pathlib import Path

import polars as pl

from moe_beyond.data.splitting import SPLITS, split_prompts
from moe_beyond.files import replacing
from moe_beyond.traces import store
from moe_beyond.traces.schema import concatenate
from moe_beyond.tracking import stage_run

TRACES = Path("data/traces")
OUT = Path("data/splits")


def main() -> None:
    with stage_run("split") as run:
        parts = store.read_parts(TRACES)
        trace = concatenate(parts)
        split = split_prompts(trace, run.params.split)
        for name in SPLITS:
            if name in split.names:
                store.write_working(split.trace(parts, name), OUT / name)
            else:
                # no held-out domain: DVC wants every out to exist
                with replacing(OUT / name) as temporary:
                    temporary.mkdir()
        table = pl.DataFrame(
            {
                "prompt_id": trace.prompt_ids,
                "domain": trace.domains,
                "split": split.assignment,
                "fingerprint": split.fingerprints,
            }
        )
        with replacing(OUT / "prompts.csv") as temporary:
            table.write_csv(temporary)
        run.write_metrics(split.report)


if __name__ == "__main__":
    main()
