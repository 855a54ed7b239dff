"""Publishing: register the predictor, evaluate it as challenger against the champion, move the alias if it is better.

The registry decides what there is to do, and DVC cannot see it: the stage runs every time, and is quick where nothing
is new. The order is safe against a kill at any point: what is registered is whole, the verdict is written before the
alias moves, and a verdict whose alias did not move is reached again.
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

from mlflow.entities.model_registry import ModelVersion

from moe_beyond.errors import InputError
from moe_beyond.files import fingerprint, folder_digest, replacing, write_json
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.registry.bundle import mismatch, read_manifest, registered_name
from moe_beyond.registry.gate import Verdict, judge, metrics, table
from moe_beyond.registry.gate_replays import Contestant, Score, latencies, score
from moe_beyond.registry.registry import CHAMPION, DIGEST, FOLDER, ROLLED_BACK, Registry
from moe_beyond.registry.settings import PublishSettings
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.traces.schema import Trace
from moe_beyond.tracking.client import MlflowMissingError, connected, log_path
from moe_beyond.tracking.pipeline import credit
from moe_beyond.tracking.run_record import git_tags

log = logging.getLogger(__name__)

GATE_VARIABLE = "MOE_BEYOND_GATE"
"""`judge` in the environment: register and judge, but keep the champion. For changes that are not merged yet."""
PREDICTOR, REPORTS = Path("models/predictor"), Path("reports/publish")
_VERDICT, _TABLE = "verdict.json", "table.csv"
_UNCHANGED = "this very predictor is the champion"


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


Decision = tuple[Verdict, tuple[Score, ...]]
"""A verdict, and the scores that it rests on."""


def publish(
    root: Path, gate: Gate, pipeline_run: Callable[[], str], write_bundle: Callable[[Path], object], headline_split: str
) -> None:
    """Bring the registry up to this state; write verdict.json, table.csv and metrics.json below reports/publish.

    Where MLflow is away or refuses, a warning is logged, the champion stays as it is, and the next call goes on.

    Args:
        root: The project's root.
        gate: Prompts and rules of the comparison.
        pipeline_run: Logs this state's run where there is none, and returns its id.
        write_bundle: Writes the predictor's bundle into a new folder.
        headline_split: Folder of the prompts that the pipeline's headline was measured on.
    """
    digest = folder_digest(root / PREDICTOR)
    question = fingerprint(digest, gate.digests, gate.settings, gate.simulate, gate.seed)
    former = root / REPORTS / _VERDICT
    verdict: dict[str, Any] = json.loads(former.read_text(encoding="utf-8")) if former.exists() else {}
    judge_only = os.environ.get(GATE_VARIABLE) == "judge"
    try:
        run_id = pipeline_run()
        with connected(root) as connection:
            registry = Registry(connection.client, gate.registered_name)
            version, champion = registry.with_digest(digest), registry.find(CHAMPION)
        here = {"question": question, "pipeline_run": run_id, "champion": _number(champion)}
        same = version is not None and (here | {"challenger": _number(version)}).items() <= verdict.items()
        # the champion's bundle may have come back
        if not same or verdict["outcome"] == "incomparable":
            decision = decide(root, registry, gate, version, champion)
            if version is None:
                version = _register(root, registry, run_id, digest, write_bundle)
            names = {"registered_model": registry.name, "champion_before": _number(champion)}
            names["challenger"] = str(version.version)
            verdict = {**names, **here, **decision[0].document()}
            _write(root, verdict | {"question": None}, decision, gate)
            _log(root, registry, version, verdict, headline_split)
            # the question is written once MLflow has the verdict
            write_json(root / REPORTS / _VERDICT, verdict)
        if verdict["moves_champion"] and verdict["champion"] != verdict["challenger"] and not judge_only:
            with connected(root):
                registry.promote(verdict["challenger"])
            write_json(root / REPORTS / _VERDICT, verdict | {"champion": verdict["challenger"]})
        if same and verdict["champion"] == verdict["challenger"]:
            log.info("gate: unchanged: %s, version %s", _UNCHANGED, verdict["champion"])
        else:
            level = logging.WARNING if verdict["outcome"] in ("refused", "incomparable") else logging.INFO
            log.log(level, "gate: %s: %s", verdict["outcome"], "; ".join(verdict["reasons"]))
    except MlflowMissingError as error:
        log.warning("%s; the champion stays as it is, the next dvc repro judges", error)
        if verdict.get("question") != question:
            pending = Verdict("pending", ("MLflow was away or refused",))
            unknown = dict.fromkeys(("challenger", "champion_before", "question", "pipeline_run", "champion"))
            verdict = {"registered_model": gate.registered_name, **unknown, **pending.document()}
            _write(root, verdict, (pending, ()), gate)


def decide(
    root: Path, registry: Registry, gate: Gate, version: ModelVersion | None, champion: ModelVersion | None
) -> Decision:
    """Score challenger and champion on the same traces, and judge; a champion that cannot be compared stays.

    Args:
        root: The project's root, with the challenger.
        registry: Where the champion's bundle is fetched.
        gate: Traces and rules.
        version: The challenger's version, if this very predictor has been registered before.
        champion: The champion's version, if there is one.
    """
    number, predictors, obstacle = _number(version), [OnnxPredictor(root / PREDICTOR)], None
    unchanged = champion is not None and number == str(champion.version)
    if champion is not None and not unchanged:
        try:
            predictors.append(_open_champion(registry, champion, gate))
        except InputError as error:
            obstacle = str(error)
    some = next(iter(gate.splits.values()))
    predictors = [predictor.reading(some) for predictor in predictors]
    times = latencies(predictors, gate.settings.latency_repeats)
    names = zip(("challenger", "champion"), (number, _number(champion)), predictors, times, strict=False)
    scores = tuple(score(Contestant(*found), gate.splits, gate.settings, gate.simulate) for found in names)
    if unchanged:
        return Verdict("unchanged", (f"{_UNCHANGED}, version {number}",)), scores
    if version is not None and ROLLED_BACK in version.tags:
        reason = (
            f"this very predictor was version {number}, rolled back on {version.tags[ROLLED_BACK]}; to make it the "
            f"champion all the same: moe-beyond rollback --to {number}"
        )
        return Verdict("refused", (reason,)), scores
    if obstacle is not None:
        fix = "the champion stays; set publish.name, or decide by hand: moe-beyond rollback --to VERSION"
        return Verdict("incomparable", (obstacle, fix)), scores
    return judge(scores[0], scores[1] if len(scores) > 1 else None, gate.settings, gate.seed), scores


def _open_champion(registry: Registry, champion: ModelVersion, gate: Gate) -> OnnxPredictor:
    """The champion's predictor. Raises InputError where it cannot be replayed on the gate's traces."""
    metadata = next(iter(gate.splits.values())).metadata
    try:
        folder = registry.bundle_of(champion)
        manifest, predictor = read_manifest(folder), OnnxPredictor(folder / "predictor")
    except InputError as error:
        raise InputError(f"the champion, version {champion.version}, cannot be opened: {error}") from error
    if obstacle := mismatch(manifest, metadata):
        raise InputError(obstacle)
    return predictor


def _register(
    root: Path, registry: Registry, run_id: str, digest: str, write_bundle: Callable[[Path], object]
) -> ModelVersion:
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / FOLDER
        write_bundle(bundle)
        model = read_manifest(bundle)["model_id"]
        with connected(root):
            registry.create(f"Predicts the experts of {model}; challenger and champion are compared on one device.")
            return registry.register(bundle, run_id, {DIGEST: digest, "run.pipeline": run_id, **git_tags(root)})


def _log(root: Path, registry: Registry, version: ModelVersion, verdict: dict[str, Any], headline_split: str) -> None:
    """Log the verdict to the version and to the pipeline's run, whose numbers get the model's name."""
    run_id, client = verdict["pipeline_run"], registry.client
    with connected(root):
        registry.note(verdict["challenger"], verdict["outcome"], verdict["reasons"])
        credit(client, run_id, str(version.source).removeprefix("models:/"), root, headline_split)
        for name in ("outcome", "registered_model", "challenger", "champion_before"):
            client.set_tag(run_id, f"gate.{name}", str(verdict[name]))
        for name in (_VERDICT, _TABLE):
            log_path(client, run_id, root, (REPORTS / name).as_posix())


def _write(root: Path, verdict: dict[str, Any], decision: Decision, gate: Gate) -> None:
    with replacing(root / REPORTS / _TABLE) as temporary:
        table(decision[1], gate.settings, gate.seed).write_csv(temporary)
    write_json(root / REPORTS / "metrics.json", metrics(*decision))
    write_json(root / REPORTS / _VERDICT, verdict)


def _number(version: ModelVersion | None) -> str | None:
    return None if version is None else str(version.version)
