"""Traces for others: a dataset folder for the Hugging Face Hub, and the paper's CSVs."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_beyond.cells import guarded
from moe_beyond.errors import InputError
from moe_beyond.files import list_files, replacing
from moe_beyond.formats.describe import describe
from moe_beyond.traces.schema import SCHEMA_VERSION, Trace, TraceMetadata
from moe_beyond.traces.store import write_parquet

if TYPE_CHECKING:
    import polars as pl

Summaries = Callable[[Trace], "Mapping[str, pl.DataFrame]"]
"""What is told of a trace beside it: tables by name."""
_SHARD_TOKENS = 1_000_000
# the Hub's identifiers of licences; it calls any other one "other"
_HUB_LICENCES = {"apache-2.0": "apache-2.0", "mit": "mit", "cc-by-4.0": "cc-by-4.0", "cc0-1.0": "cc0-1.0"}
_HUB_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
# the folders of a path on some machine; neither those of an address nor of a path inside a project
_FOLDERS = re.compile(r"(file://|(?<![\w:/.~]))(~[\w.-]*|\.{0,2})/([^/,:;]+/)*|(?<!\w)[A-Za-z]:\\([^\\,;]+\\)*")
_COLUMN_NOTES = {
    "weights": "float16 list: the combine weight of each id in `experts`",
    "token_ids": "int32 list, one a token: ids of the model's tokenizer",
    "token_texts": "string list, one a token: token strings as the source writes them",
    "predicted_experts": "as `experts`: what a published predictor had named for the token",
}
_SUMMARY_NOTES = {
    "hit_curves": "hit rates of caches by policy and by the share of the experts that they hold, from an empty cache; ",
    "card": "what decides whether offloading its experts pays; ",
}


def export(
    format: str,  # noqa: A002 - as in `importers.read`
    trace: Trace,
    target: Path,
    summaries: Summaries | None = None,
) -> None:
    """Write a trace for others; what stood at `target` is replaced when all is written.

    Args:
        format: One of `FORMATS`.
        trace: A valid trace.
        target: A file for `parquet`, a folder otherwise.
        summaries: As in `write_hub_dataset`; other formats have no place for them.

    Raises:
        InputError: An unknown format, or a trace that lacks what the format needs.
    """
    if format not in FORMATS:
        raise InputError(f"unknown export format {format!r}; expected one of {', '.join(FORMATS)}")
    if format == "hub":
        write_hub_dataset(trace, target, summaries)
    else:
        FORMATS[format](trace, target)


def write_hub_dataset(trace: Trace, folder: Path, summaries: Summaries | None = None) -> None:
    """Write Parquet shards of about a million tokens and a README.md that the Hugging Face Hub understands.

    Prompts of held-out domains become the split `test`, the others `train`. Of paths on this machine that stand in the
    metadata, as those of prompt files or of a local model, the last name alone is written. Hidden states are left out.

    Args:
        trace: A valid trace.
        folder: To write.
        summaries: Tables of the trace, each a configuration and a folder of its own, with one file named after the
            model, so that others can add theirs.
    """
    trace = replace(trace, metadata=_public(trace.metadata), hidden=None)
    tables = summaries(trace) if summaries else {}
    with replacing(folder) as temporary:
        temporary.mkdir()
        for split, prompts in _hub_splits(trace).items():
            shard_P = np.cumsum(np.diff(trace.prompt_offsets)[prompts]) // _SHARD_TOKENS
            shards = [prompts[shard_P == shard] for shard in np.unique(shard_P)]
            for number, shard in enumerate(shards):
                write_parquet(trace.select(shard), temporary / f"{split}-{number:05d}-of-{len(shards):05d}.parquet")
        for name, table in tables.items():
            (temporary / name).mkdir()
            slug = re.sub(r"[^\w.-]+", "_", trace.metadata.model_id)
            table.write_parquet(temporary / name / f"{slug}.parquet")
        (temporary / "README.md").write_text(dataset_card(trace, tables), encoding="utf-8")
        list_files(temporary)


def dataset_card(trace: Trace, tables: Mapping[str, pl.DataFrame] | None = None) -> str:
    """The README.md of a dataset folder: YAML for the Hub, then what the columns hold, in Markdown."""
    tables = tables or {}
    facts = describe(trace)
    name = facts["model_id"].split("/")[-1]
    licence = _HUB_LICENCES.get(facts["licence"].lower(), "other")
    size = next((label for limit, label in _HUB_SIZES if facts["prompts"] < limit), "n>1M")
    header = [
        "---",
        f"pretty_name: {json.dumps(f'Expert routing of {name}')}",
        f"license: {licence}",
        *([f"license_name: {json.dumps(facts['licence'])}"] if licence == "other" else []),
        f"size_categories: [{json.dumps(size)}]",
        "tags: [mixture-of-experts, routing-traces]",
        "configs:",
        "- config_name: default",
        "  data_files:",
        *(line for split in _hub_splits(trace) for line in (f"  - split: {split}", f"    path: {split}-*.parquet")),
        *(line for name in tables for line in (f"- config_name: {name}", f"  data_files: {name}/*.parquet")),
        "---",
    ]
    domains = [
        f"| {_cell(domain)} | {entry['prompts']} | {entry['tokens']} | {'yes' if entry['held_out'] else 'no'} |"
        for domain, entry in facts["domains"].items()
    ]
    summaries = [
        f"- `{name}/`, a file a model: {_SUMMARY_NOTES.get(name, '')}columns `{'`, `'.join(table.columns)}`"
        for name, table in tables.items()
    ]
    beside = ["", "## Summaries", "", "Add a file of your own model to each folder to compare it.", "", *summaries]
    body = f"""
# Expert routing of {name}

Which experts the router of `{facts["model_id"]}` chose for each token: {facts["tokens"]} tokens of {facts["prompts"]}
prompts ({facts["prefill_tokens"]} prefill, {facts["decode_tokens"]} decode), {len(facts["moe_layers"])} MoE layers with
{facts["num_experts"]} routed experts, top-{facts["top_k"]}.

Source: {facts["source"]}. Licence: {facts["licence"]}. Decoding: {facts["decoding"]}.

| domain | prompts | tokens | held out |
|---|---|---|---|
{chr(10).join(domains)}

## Columns, a row a prompt

- `prompt_id`, `domain`: text; `held_out`: whether the domain is kept for testing only
- `num_prefill`: how many of the prompt's first tokens were prefill; the others were decoded one by one
- `experts`: list of tokens x layers x {facts["top_k"]} ids, in token, layer, router order
{chr(10).join(f"- `{column}`: {_COLUMN_NOTES[column]}" for column in facts["columns"])}

The file metadata `moe_beyond` (JSON, schema version {SCHEMA_VERSION}) names the layers, their expert sizes in bytes and
the origin:

```python
import json
import numpy as np
import pyarrow.parquet as pq

table = pq.read_table("{next(iter(_hub_splits(trace)))}-00000-of-00001.parquet")
meta = json.loads(table.schema.metadata[b"moe_beyond"])
first = np.array(table.column("experts")[0].as_py()).reshape(-1, len(meta["layer_numbers"]), meta["top_k"])
```
"""
    return "\n".join(header) + "\n" + body + ("\n".join([*beside, ""]) if tables else "")


def write_csv_folder(trace: Trace, folder: Path) -> None:
    """Write the paper's format: `<prompt>_data.csv`, layer-major, `Layer ID,Batch Number,Token,Activated Expert IDs`.

    Weights, phases and predictions have no place in it. Without token strings, ids stand for them. Tokens that a
    spreadsheet would compute are guarded (`moe_beyond.cells`), which the importer takes away again.

    Raises:
        InputError: The trace has neither token strings nor ids, or two prompts would get one file name.
    """
    if trace.token_texts is not None:
        tokens = trace.token_texts.decode()
    elif trace.token_ids_T is not None:
        tokens = [str(token) for token in trace.token_ids_T.tolist()]
    else:
        raise InputError("the trace has neither token strings nor ids; the paper's CSVs need one of them")
    names = [name.split("/")[-1] for name in trace.prompt_ids]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two prompts would become {twice}_data.csv; export one domain at a time")
    with replacing(folder) as temporary:
        temporary.mkdir()
        bounds = zip(names, trace.prompt_offsets[:-1].tolist(), trace.prompt_offsets[1:].tolist(), strict=True)
        for name, start, end in bounds:
            with (temporary / f"{name}_data.csv").open("w", encoding="utf-8", newline="") as stream:
                rows = csv.writer(stream)
                rows.writerow(["Layer ID", "Batch Number", "Token", "Activated Expert IDs"])
                for layer, number in enumerate(trace.metadata.layer_numbers):
                    experts_TK = trace.experts_TLK[start:end, layer].tolist()
                    rows.writerows(
                        [number, 0, guarded(token), str(experts)]
                        for token, experts in zip(tokens[start:end], experts_TK, strict=True)
                    )
        list_files(temporary)


FORMATS: dict[str, Callable[[Trace, Path], None]] = {
    "parquet": write_parquet,
    "hub": write_hub_dataset,
    "moe-beyond-csv": write_csv_folder,
}


def _hub_splits(trace: Trace) -> dict[str, np.ndarray]:
    splits = {"train": np.nonzero(~trace.held_out_P)[0], "test": np.nonzero(trace.held_out_P)[0]}
    return {split: prompts for split, prompts in splits.items() if len(prompts)}


def _public(meta: TraceMetadata) -> TraceMetadata:
    texts = {name: getattr(meta, name) for name in ("model_id", "source", "licence")}
    return meta.model_copy(update={name: _FOLDERS.sub("", text.rstrip("/\\")) for name, text in texts.items()})


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
