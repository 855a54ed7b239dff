"""The bundle: everything that belongs to a predictor, in one folder that a registry can keep.

README.md       model card
bundle.json     whose model, which layers and experts, how a token becomes numbers, digests of all data and files
predictor/      the ONNX graphs
calibration.csv, quality.csv    how far its probabilities can be trusted, recall by split, horizon and layer
advice.json     is the model worth offloading, and every policy's time on the device at the gate's capacity
metrics.json    metrics of every stage
window.npz, window.json    what drift is measured against
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from moe_beyond.data.tokens import MAX_NGRAMS, NGRAM_SIZES
from moe_beyond.errors import InputError, TamperedError
from moe_beyond.files import file_digests, write_json
from moe_beyond.predictor.graph_file import LEAST_ONNXRUNTIME
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.registry.drift.window import Measures, Window, write_window
from moe_beyond.registry.markdown import render
from moe_beyond.registry.settings import PublishSettings
from moe_beyond.traces.schema import SCHEMA_VERSION, TraceMetadata

BUNDLE_VERSION = 1
"""Version of this folder's layout; a reader refuses a newer one."""
MANIFEST = "bundle.json"

_TABLES = ("calibration", "quality")


@dataclass(frozen=True)
class Origin:
    """Where a bundle comes from.

    Attributes:
        seed: Every random choice followed from it.
        git: `git.commit` and `git.dirty`; empty outside a repository.
        digests: DVC's digest of every data set and model that the pipeline made, by path.
        runs: Key of each stage's run in MLflow.
    """

    seed: int
    git: dict[str, str]
    digests: dict[str, str]
    runs: dict[str, str]


def registered_name(settings: PublishSettings, model_id: str) -> str:
    """The registered model that a predictor of this traced model competes in."""
    if settings.name is not None:
        return settings.name
    return f"moe-beyond.{re.sub(r'[^A-Za-z0-9_-]+', '-', model_id).strip('-')}.{settings.device}"


def write_bundle(  # noqa: PLR0917 - all of it goes into the bundle
    folder: Path,
    root: Path,
    metadata: TraceMetadata,
    settings: PublishSettings,
    origin: Origin,
    window: tuple[Window, Measures],
) -> dict[str, Any]:
    """Assemble a bundle from the pipeline's outs.

    Args:
        folder: A new folder.
        root: The project's root; `models/predictor` and `reports/` are read.
        metadata: Of the traces.
        settings: Device and capacity of the advice.
        origin: Where everything comes from.
        window: Usage of the training split, and measures of the gate's prompts of the same domain.

    Returns:
        The manifest that `bundle.json` holds.
    """
    folder.mkdir(parents=True)
    shutil.copytree(root / "models" / "predictor", folder / "predictor")
    for name in _TABLES:
        path = root / "reports" / "export" / "tables" / f"{name}.parquet"
        pl.read_parquet(path, glob=False).write_csv(folder / f"{name}.csv")
    manifest = describe(OnnxPredictor(folder / "predictor"), metadata, origin)
    advice = device_advice(root / "reports", settings)
    metrics = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((root / "reports").glob("*/metrics.json"))
        if path.parent.name != "publish"
    }
    write_json(folder / "advice.json", advice)
    write_json(folder / "metrics.json", metrics)
    write_window(folder, *window)
    card = render("model_card.md.j2", manifest=manifest, advice=advice, metrics=metrics, measures=window[1])
    (folder / "README.md").write_text(card, encoding="utf-8")
    manifest["files"] = file_digests(folder)
    write_json(folder / MANIFEST, manifest)
    return manifest


def describe(predictor: OnnxPredictor, metadata: TraceMetadata, origin: Origin) -> dict[str, Any]:
    """The manifest: shape, token specification, origin."""
    return {
        "bundle_version": BUNDLE_VERSION,
        "trace_schema_version": SCHEMA_VERSION,
        "least_onnxruntime": LEAST_ONNXRUNTIME,
        "model_id": metadata.model_id,
        "model_revision": metadata.model_revision,
        "layer_numbers": list(metadata.layer_numbers),
        "num_experts": metadata.num_experts,
        "top_k": metadata.top_k,
        "tokens": {
            "known_strings": len(predictor.encoder.known),
            "letter_buckets": predictor.encoder.letter_buckets,
            "ngram_sizes": list(NGRAM_SIZES),
            "max_ngrams": MAX_NGRAMS,
            "hash": "CRC-32 of the UTF-8 bytes of each n-gram of <word>, word in lower case without the mark of a "
            "leading space; modulo letter_buckets - 1, plus 1; 0 is padding; the whole <word> comes first",
            "known_strings_are_in": "the ONNX file's metadata, key moe_beyond, known_tokens",
        },
        "licence_of_traces": metadata.licence,
        "source_of_traces": metadata.source,
        **asdict(origin),
    }


def device_advice(reports: Path, settings: PublishSettings) -> dict[str, Any]:
    """The suitability card's verdict, and what each policy takes on the gate's device nearest to its capacity.

    `policies` is empty where the simulate stage did not time that device; bounds, which cannot run, are not in it.
    Every time has the charged latency of its predictor beside it.
    """
    card = json.loads((reports / "assess" / "card.json").read_text(encoding="utf-8"))
    rows = pl.read_parquet(reports / "simulate" / "tables" / "on_device.parquet", glob=False)
    rows = rows.filter((pl.col("device") == settings.device) & ~pl.col("bound"))
    nearest = (pl.col("capacity_fraction") - settings.capacity).abs()
    rows = rows.filter(nearest == nearest.min()).sort("split", "ms_per_token")
    columns = ("split", "policy", "title", "lossy", "ms_per_token", "tokens_per_second", "hit_rate", "mib_per_token")
    return {
        "suitability": {"verdict": card["verdict"], "reasons": card["reasons"]},
        "device": settings.device,
        "capacity_experts": rows["capacity_experts"][0] if rows.height else None,
        "policies": rows.select(*columns, "gap_closed", "token_step_ms", "layer_step_ms").to_dicts(),
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read `bundle.json`.

    Raises:
        InputError: It is missing or damaged, or of a newer layout than this release reads.
        TamperedError: The folder's files are not those that it names.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise InputError(f"{path}: no such file; this is no bundle that the publish stage registered")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = int(manifest["bundle_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged, no bundle version in it; fetch or publish the bundle again") from error
    if version > BUNDLE_VERSION:
        raise InputError(
            f"{path}: bundle version {version}, this release reads up to {BUNDLE_VERSION}; upgrade moe-beyond"
        )
    expected = manifest.get("files")
    if not isinstance(expected, dict):
        raise InputError(f"{path}: names no files: an older release wrote it; publish the bundle again")
    found = file_digests(folder)
    del found[MANIFEST]
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            what = "missing" if name not in found else "not named" if name not in expected else "damaged or changed"
            raise TamperedError(f"{folder / name}: {what}, by {MANIFEST}; fetch or publish the bundle again")
    return manifest


def mismatch(manifest: dict[str, Any], metadata: TraceMetadata) -> str | None:
    """Why a bundle cannot be replayed on these traces, in words; None where it can."""
    mine = (manifest["model_id"], tuple(manifest["layer_numbers"]), manifest["num_experts"], manifest["top_k"])
    theirs = (metadata.model_id, metadata.layer_numbers, metadata.num_experts, metadata.top_k)
    if mine == theirs:
        return None
    shapes = [f"{m[0]}, {len(m[1])} layers of {m[2]} experts, top-{m[3]}" for m in (mine, theirs)]
    return f"the champion was made for {shapes[0]}; these traces are of {shapes[1]}"
