"""Divide the traces by distinct prompt; later stages see only the splits they may see."""

from dataclasses import replace
from pathlib import Path

import polars as pl

from moe_beyond.cells import guarded
from moe_beyond.data.settings import SplitSettings
from moe_beyond.data.splitting import SPLITS, split_prompts
from moe_beyond.files import replacing, write_json
from moe_beyond.settings import Settings
from moe_beyond.traces import store
from moe_beyond.traces.schema import concatenate

OUT = Path("data/splits")


class Params(Settings):
    split: SplitSettings = SplitSettings()


def main(root: Path, params: Params) -> None:
    parts = store.read_parts(root / "data/traces")
    # hidden states may be larger than the memory: they do not decide, and are copied a split at a time
    trace = concatenate([replace(part, hidden=None) for part in parts])
    split = split_prompts(trace, params.split)
    for name in SPLITS:
        if name in split.names:
            store.write_working(split.trace(parts, name), root / OUT / name)
        else:
            # no held-out domain: DVC wants every out to exist
            with replacing(root / OUT / name) as temporary:
                temporary.mkdir()
    table = pl.DataFrame(
        {
            "prompt_id": [guarded(name) for name in trace.prompt_ids],
            "domain": [guarded(name) for name in trace.domains],
            "split": split.assignment,
            "fingerprint": split.fingerprints,
        }
    )
    with replacing(root / OUT / "prompts.csv") as temporary:
        table.write_csv(temporary)
    write_json(root / "reports/split/metrics.json", split.report)
