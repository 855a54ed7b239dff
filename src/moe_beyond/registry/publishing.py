"""The publish stage's dealings with MLflow: register the bundle, meet the champion, move the alias or do not."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from mlflow.entities.model_registry import ModelVersion

from moe_beyond.errors import InputError
from moe_beyond.files import folder_digest, replacing, write_json
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.registry.bundle import mismatch, read_manifest
from moe_beyond.registry.contest import Contestant, Score, latencies, score
from moe_beyond.registry.registry import CHAMPION, DIGEST, ROLLED_BACK, Registry
from moe_beyond.registry.settings import PublishSettings
from moe_beyond.registry.verdict import Verdict, judge, metrics, table
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.traces.schema import Trace
from moe_beyond.tracking.stage import StageRun

GATE_VARIABLE = "MOE_BEYOND_GATE"
"""`judge` in the environment: register and judge, but leave the champion. For changes that are not merged yet."""


@dataclass(frozen=True)
class Gate:
    """What a contest is held under."""

    splits: Mapping[str, Trace]
    settings: PublishSettings
    simulate: SimulateSettings
    seed: int


@dataclass(frozen=True)
class Decision:
    """A verdict with what it rests on."""

    verdict: Verdict
    scores: tuple[Score, ...]


def publish(run: StageRun[Any], registry: Registry, bundle: Path, gate: Gate, pipeline_id: str) -> Callable[[], None]:
    """Register a bundle, judge it, and write the stage's files.

    Args:
        run: The open run of the stage.
        registry: The registered model that it competes in.
        bundle: From `registry.bundle.write_bundle`.
        gate: Traces and rules.
        pipeline_id: The pipeline's run, to be named by the version.

    Returns:
        What moves the champion if the bundle won: to be called last, when nothing can fail any more.

    Raises:
        InputError: MLflow does not answer.
    """
    manifest = read_manifest(bundle)
    digest = folder_digest(bundle / "predictor")
    registry.create(f"Predicts the experts of {manifest['model_id']}; the gate times it on {gate.settings.device}.")
    version = registry.with_digest(digest)
    champion = registry.by_alias(CHAMPION)
    decision = decide(registry, bundle, gate, version, champion)
    if version is None:
        tags = {DIGEST: digest, "run.pipeline": pipeline_id, **manifest["git"]}
        version = registry.register(bundle, run.run_id, tags)
    number = str(version.version)
    if decision.verdict.outcome != "unchanged":
        registry.note(number, decision.verdict.outcome, decision.verdict.reasons)
    registry.call_challenger(number)
    before = _number(champion)
    moves = decision.verdict.moves_champion and os.environ.get(GATE_VARIABLE) != "judge"
    after = number if moves else before
    names = {"registered_model": registry.name, "challenger": number, "champion_before": before, "champion": after}
    _write(run, decision, gate, names)
    return partial(registry.promote, number) if moves else lambda: None


def carry_out(registry: Registry, verdict: dict[str, Any]) -> str:
    """Move the champion as a verdict says that was reached without moving it, and say what became of it.

    A verdict holds against the champion that it was reached against: where another one has come since, nothing moves.

    Args:
        registry: The registered model.
        verdict: From verdict.json.
    """
    champion, challenger = _number(registry.by_alias(CHAMPION)), str(verdict["challenger"])
    if champion == challenger:
        return f"version {challenger} is the champion"
    if not verdict["moves_champion"]:
        return f"version {challenger} does not become the champion: {verdict['outcome']}; version {champion} stays"
    if champion != verdict["champion_before"]:
        return (
            f"version {challenger} won against version {verdict['champion_before']}, but version {champion} is the "
            "champion now; to hold the gate anew: dvc repro -f -s publish"
        )
    registry.promote(challenger)
    return f"version {challenger} is the champion now"


def decide(
    registry: Registry, bundle: Path, gate: Gate, version: ModelVersion | None, champion: ModelVersion | None
) -> Decision:
    """Score challenger and champion on the same traces, and judge; what cannot be compared is said and stays.

    Args:
        registry: Where the champion's bundle is fetched.
        bundle: The challenger's.
        gate: Traces and rules.
        version: The challenger's version, if this very predictor has been registered before.
        champion: The champion's version, if there is one.
    """
    number, mine = _number(version), OnnxPredictor(bundle / "predictor")
    rival, obstacle = None, None
    if champion is not None and number != str(champion.version):
        rival, obstacle = _open_champion(registry, champion, gate)
    predictors = [mine] if rival is None else [mine, rival]
    times = latencies(predictors, gate.settings.latency_repeats)
    names = zip(("challenger", "champion"), (number, _number(champion)), predictors, times, strict=False)
    scores = tuple(score(Contestant(*found), gate.splits, gate.settings, gate.simulate) for found in names)
    if champion is not None and number == str(champion.version):
        return Decision(Verdict("unchanged", (f"this very predictor is the champion, version {number}",)), scores)
    if version is not None and ROLLED_BACK in version.tags:
        reason = (
            f"this very predictor was version {number}, rolled back on {version.tags[ROLLED_BACK]}; to make it the "
            f"champion all the same: moe-beyond rollback --to {number}"
        )
        return Decision(Verdict("refused", (reason,)), scores)
    if obstacle is not None:
        mend = "the champion stays; set publish.name, or decide by hand: moe-beyond rollback --to VERSION"
        return Decision(Verdict("incomparable", (obstacle, mend)), scores)
    return Decision(judge(scores[0], scores[1] if rival else None, gate.settings, gate.seed), scores)


def _open_champion(registry: Registry, champion: ModelVersion, gate: Gate) -> tuple[OnnxPredictor | None, str | None]:
    """The champion's predictor, or why it cannot be replayed on these traces."""
    metadata = next(iter(gate.splits.values())).metadata
    try:
        folder = registry.bundle_of(champion)
        obstacle = mismatch(read_manifest(folder), metadata)
        return (None, obstacle) if obstacle else (OnnxPredictor(folder / "predictor"), None)
    except InputError as error:
        return None, f"the champion, version {champion.version}, cannot be opened: {error}"


def _write(run: StageRun[Any], decision: Decision, gate: Gate, names: dict[str, Any]) -> None:
    write_json(run.reports / "verdict.json", {**names, **decision.verdict.document()})
    rows: pl.DataFrame = table(decision.scores, gate.settings, gate.seed)
    with replacing(run.reports / "table.csv") as temporary:
        rows.write_csv(temporary)
    run.write_metrics(metrics(decision.verdict, decision.scores))
    for key, name in names.items():
        run.client.set_tag(run.run_id, f"gate.{key}", str(name))
    run.client.set_tag(run.run_id, "gate.outcome", decision.verdict.outcome)


def _number(version: ModelVersion | None) -> str | None:
    return None if version is None else str(version.version)
