"""Publishing: register the predictor, evaluate it as challenger against the champion, and move the alias if it won.

The registry decides what there is to do, and DVC cannot see it: the stage runs every time, and is quick where nothing
is new. Order matters, as the process may be killed anywhere: what is registered is whole, the verdict is written before
the alias moves, and a verdict whose alias did not move is reached again.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from mlflow.entities.model_registry import ModelVersion

from moe_beyond.errors import InputError
from moe_beyond.files import fingerprint, folder_digest, replacing, write_json
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.registry.bundle import mismatch, read_manifest, registered_name
from moe_beyond.registry.contest import Contestant, Score, latencies, score
from moe_beyond.registry.registry import CHAMPION, DIGEST, FOLDER, ROLLED_BACK, Registry
from moe_beyond.registry.settings import PublishSettings
from moe_beyond.registry.verdict import Verdict, judge, metrics, table
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.traces.schema import Trace
from moe_beyond.tracking.client import MlflowMissingError, asking, log_path
from moe_beyond.tracking.pipeline import credit
from moe_beyond.tracking.record import git_tags

log = logging.getLogger(__name__)

GATE_VARIABLE = "MOE_BEYOND_GATE"
"""`judge` in the environment: register and judge, but leave the champion. For changes that are not merged yet."""
PREDICTOR, REPORTS = Path("models/predictor"), Path("reports/publish")
_VERDICT, _TABLE, _METRICS = "verdict.json", "table.csv", "metrics.json"


@dataclass(frozen=True)
class Gate:
    """What challenger and champion are compared on.

    Attributes:
        splits: Prompts that no figure is reported on, by name.
        settings: Device, capacity, metric and limits.
        simulate: How caches are replayed.
        seed: Of the intervals.
        digests: DVC's digests of the splits.
    """

    splits: Mapping[str, Trace]
    settings: PublishSettings
    simulate: SimulateSettings
    seed: int
    digests: tuple[str, ...]

    @property
    def registered_name(self) -> str:
        """The registered model that the predictor competes in."""
        return registered_name(self.settings, next(iter(self.splits.values())).metadata.model_id)


@dataclass(frozen=True)
class Decision:
    """A verdict with what it rests on."""

    verdict: Verdict
    scores: tuple[Score, ...]


def publish(
    root: Path, gate: Gate, pipeline_run: Callable[[], str], write_bundle: Callable[[Path], object], headline_split: str
) -> None:
    """Bring the registry up to this state; write verdict.json, table.csv and metrics.json below reports/publish.

    Where MLflow is away or does not take something, a warning says so, the champion stays as it is, and the next call
    goes on.

    Args:
        root: The project's root.
        gate: What the contest is held on.
        pipeline_run: Logs this state's run where there is none, and returns its id.
        write_bundle: Writes the predictor's bundle into a new folder.
        headline_split: Folder of the prompts that the pipeline's headline was measured on.
    """
    digest = folder_digest(root / PREDICTOR)
    question = fingerprint(digest, gate.digests, gate.settings, gate.simulate, gate.seed)
    verdict = _former(root)
    try:
        run_id = pipeline_run()
        with asking(root) as connection:
            registry = Registry(connection.client, gate.registered_name)
            version, champion = registry.with_digest(digest), registry.by_alias(CHAMPION)
        here = {"question": question, "pipeline_run": run_id, "champion": _number(champion)}
        same = version is not None and (here | {"challenger": _number(version)}).items() <= verdict.items()
        # the champion's bundle may have come back
        if not same or verdict["outcome"] == "incomparable":
            decision = decide(root, registry, gate, version, champion)
            if version is None:
                version = _register(root, registry, run_id, digest, write_bundle)
            names = {
                "registered_model": registry.name,
                "challenger": str(version.version),
                "champion_before": _number(champion),
            }
            verdict = {**names, **here, **decision.verdict.document()}
            _write(root, verdict | {"question": None}, decision, gate)
            _tell(root, registry, version, verdict, headline_split)
            # with the question, it says that MLflow knows
            write_json(root / REPORTS / _VERDICT, verdict)
        if verdict["moves_champion"] and verdict["champion"] != verdict["challenger"] and not judge_only():
            with asking(root):
                registry.promote(verdict["challenger"])
            write_json(root / REPORTS / _VERDICT, verdict | {"champion": verdict["challenger"]})
        log.info("gate: %s: %s", verdict["outcome"], "; ".join(verdict["reasons"]))
    except MlflowMissingError as error:
        log.warning("%s; the champion stays as it is, the next dvc repro judges", error)
        if verdict.get("question") != question:
            pending = Decision(Verdict("pending", ("MLflow was away or did not take it",)), ())
            names = dict.fromkeys(("challenger", "champion_before", "question", "pipeline_run", "champion"))
            _write(
                root, {"registered_model": gate.registered_name, **names, **pending.verdict.document()}, pending, gate
            )


def judge_only() -> bool:
    """Whether the environment says that the champion stays, whoever wins."""
    return os.environ.get(GATE_VARIABLE) == "judge"


def decide(
    root: Path, registry: Registry, gate: Gate, version: ModelVersion | None, champion: ModelVersion | None
) -> Decision:
    """Score challenger and champion on the same traces, and judge; what cannot be compared is said and stays.

    Args:
        root: The project's root, with the challenger.
        registry: Where the champion's bundle is fetched.
        gate: Traces and rules.
        version: The challenger's version, if this very predictor has been registered before.
        champion: The champion's version, if there is one.
    """
    number, mine = _number(version), OnnxPredictor(root / PREDICTOR)
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
        fix = "the champion stays; set publish.name, or decide by hand: moe-beyond rollback --to VERSION"
        return Decision(Verdict("incomparable", (obstacle, fix)), scores)
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


def _register(
    root: Path, registry: Registry, run_id: str, digest: str, write_bundle: Callable[[Path], object]
) -> ModelVersion:
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / FOLDER
        write_bundle(bundle)
        model = read_manifest(bundle)["model_id"]
        with asking(root):
            registry.create(f"Predicts the experts of {model}; challenger and champion are compared on one device.")
            return registry.register(bundle, run_id, {DIGEST: digest, "run.pipeline": run_id, **git_tags(root)})


def _tell(root: Path, registry: Registry, version: ModelVersion, verdict: dict[str, Any], headline_split: str) -> None:
    """Say the verdict on the version and on the pipeline's run, which gets the model's name to its numbers."""
    run_id, client = verdict["pipeline_run"], registry.client
    with asking(root):
        if verdict["outcome"] != "unchanged":
            registry.note(verdict["challenger"], verdict["outcome"], verdict["reasons"])
        registry.call_challenger(verdict["challenger"])
        credit(client, run_id, str(version.source).removeprefix("models:/"), root, headline_split)
        for name in ("outcome", "registered_model", "challenger", "champion_before"):
            client.set_tag(run_id, f"gate.{name}", str(verdict[name]))
        for name in (_VERDICT, _TABLE):
            log_path(client, run_id, root, (REPORTS / name).as_posix())


def _write(root: Path, verdict: dict[str, Any], decision: Decision, gate: Gate) -> None:
    rows: pl.DataFrame = table(decision.scores, gate.settings, gate.seed)
    with replacing(root / REPORTS / _TABLE) as temporary:
        rows.write_csv(temporary)
    write_json(root / REPORTS / _METRICS, metrics(decision.verdict, decision.scores))
    write_json(root / REPORTS / _VERDICT, verdict)


def _former(root: Path) -> dict[str, Any]:
    """The verdict that was reached last; empty where there is none."""
    path = root / REPORTS / _VERDICT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _number(version: ModelVersion | None) -> str | None:
    return None if version is None else str(version.version)
