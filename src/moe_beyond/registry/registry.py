"""MLflow's model registry: versions of a predictor, the aliases `challenger` and `champion`, and the way back.

The order of champions is kept in the registered model's tag `champion.history`, oldest first, which rollback reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from moe_beyond.errors import InputError, TamperedError, reason_of
from moe_beyond.registry.bundle import MANIFEST

CHAMPION, CHALLENGER = "champion", "challenger"
FOLDER = "bundle"
"""Name of a bundle's folder: MLflow keeps it under the name that it came with."""
DIGEST, BUNDLE_DIGEST, ROLLED_BACK = "predictor.digest", "bundle.sha256", "rolled_back"
_HISTORY = "champion.history"
_NEEDED = ("onnxruntime", "numpy", "pandas", "pydantic")

_IDS, _SHARES = (Array(Array(Array(kind))) for kind in (DataType.long, DataType.double))
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(Array(DataType.string), "tokens"), ColSpec(_IDS, "routing", required=False)]),
    outputs=Schema([ColSpec(_IDS, "experts"), ColSpec(_SHARES, "probabilities")]),
    params=ParamSchema(
        [ParamSpec("top", DataType.long, default=0), ParamSpec("every_token", DataType.boolean, default=False)]
    ),
)


@dataclass(frozen=True)
class Registry:
    """One registered model.

    Attributes:
        client: Of the MLflow that was connected last: models are fetched and logged there.
        name: In the registry.
    """

    client: MlflowClient
    name: str

    def create(self, about: str) -> None:
        """Make the registered model where it is new."""
        try:
            self.client.create_registered_model(self.name, description=about)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def find(self, name: str) -> ModelVersion | None:
        """The version of a number, or behind an alias; None where there is none."""
        get = self.client.get_model_version if name.isdecimal() else self.client.get_model_version_by_alias
        try:
            return get(self.name, name)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def version(self, name: str) -> ModelVersion:
        """The version of a number, or behind an alias.

        Raises:
            InputError: There is none.
        """
        found = self.find(name)
        if found is None:
            names = [model.name for model in self.client.search_registered_models()]
            known = ", ".join(names) if names else "none: the publish stage makes them"
            raise InputError(f"{self.name}@{name}: no such version or alias; registered models in this MLflow: {known}")
        return found

    def with_digest(self, digest: str) -> ModelVersion | None:
        """The version that holds this very predictor, if one does."""
        found = self.client.search_model_versions(f"name = '{self.name}' and tags.`{DIGEST}` = '{digest}'")
        return found[0] if found else None

    def bundle_of(self, version: ModelVersion) -> Path:
        """Fetch the bundle of a version, whose bundle.json must be the one that was registered; it names the rest.

        Raises:
            InputError: Its artifacts are gone.
            TamperedError: They are others than the version's tags say.
        """
        try:
            local = mlflow.artifacts.download_artifacts(f"models:/{self.name}/{version.version}")
        except (MlflowException, OSError) as error:
            reason = reason_of(error)
            raise InputError(
                f"{self.name} version {version.version}: its artifacts cannot be fetched ({reason}); bring them back, "
                "or make another version the champion: moe-beyond rollback --to VERSION"
            ) from error
        folder = Path(local) / "artifacts" / FOLDER
        expected = version.tags.get(BUNDLE_DIGEST)
        if expected is None:
            raise InputError(
                f"{self.name} version {version.version}: no tag {BUNDLE_DIGEST}: an older release registered it, "
                "without a digest to believe it by; make another version the champion: moe-beyond rollback --to VERSION"
            )
        if _manifest_digest(folder) != expected:
            raise TamperedError(
                f"{self.name} version {version.version}: its bundle is not the one that was registered (tag "
                f"{BUNDLE_DIGEST}): damaged or changed; bring its artifacts back, or make another version the "
                "champion: moe-beyond rollback --to VERSION"
            )
        return folder

    def register(self, bundle: Path, run_id: str, tags: dict[str, str]) -> ModelVersion:
        """Log a bundle, a folder named FOLDER, as a pyfunc model of a run that has ended, and make a version of it."""
        manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
        tags = tags | {BUNDLE_DIGEST: _manifest_digest(bundle)}
        experiment = self.client.get_run(run_id).info.experiment_id
        # of a registration that was killed: no version came of it
        for former in self.client.search_logged_models([experiment], f"tags.`{DIGEST}` = '{tags[DIGEST]}'"):
            if former.source_run_id == run_id:
                self.client.delete_logged_model(former.model_id)
        model = self.client.create_logged_model(experiment, "predictor", source_run_id=run_id, tags=tags)
        mlflow.pyfunc.log_model(
            model_id=model.model_id,
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={"bundle": str(bundle)},
            # a version stays what it was when the project's code moves on
            code_paths=[str(Path(__file__).parents[1])],
            signature=SIGNATURE,
            input_example=example(manifest),
            pip_requirements=[f"{name}=={library_version(name)}" for name in ("mlflow", *_NEEDED)],
            metadata={key: manifest[key] for key in ("bundle_version", "model_id", "num_experts", "top_k")},
        )
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        # tags come with the version itself: one that is there is whole
        return self.client.create_model_version(
            self.name, f"models:/{model.model_id}", run_id, tags=tags, model_id=model.model_id,
            description=(bundle / "README.md").read_text(encoding="utf-8"),
        )  # fmt: skip

    def note(self, version: str, outcome: str, reasons: Sequence[str]) -> None:
        """Write on the challenger what the gate decided and why, unless nothing changed; give it its alias."""
        if outcome != "unchanged":
            self.client.set_model_version_tag(self.name, version, "gate", outcome)
            self.client.set_model_version_tag(self.name, version, "gate.reasons", "; ".join(reasons))
        self.client.set_registered_model_alias(self.name, CHALLENGER, version)

    def promote(self, version: str) -> None:
        """Make a version the champion, and add it to the history of champions."""
        history = [entry for entry in self.history() if entry != version]
        self._set_champion(version, [*history, version])

    def history(self) -> list[str]:
        """Versions that were champion, oldest first; the last one is."""
        tags = self.client.get_registered_model(self.name).tags
        return [str(version) for version in json.loads(tags.get(_HISTORY, "[]"))]

    def roll_back(self, to: str | None = None) -> tuple[str, str]:
        """Make an earlier champion, or any other version, the champion.

        Args:
            to: The version; None: the champion before this one.

        Returns:
            The former champion and the one of now.

        Raises:
            InputError: No such model or version, no champion, or none before this one.
        """
        champion = str(self.version(CHAMPION).version)
        history = [entry for entry in self.history() if entry != champion]
        if to is None:
            if not history:
                raise InputError(f"{self.name}: version {champion} is the first champion; there is none to go back to")
            to = history[-1]
        if to == champion:
            raise InputError(f"{self.name}: version {to} is the champion already")
        self.version(to)
        if to in history:
            # back, not on to a new one: what was rolled back may not win by the gate again
            now = datetime.now(UTC).isoformat("T", "seconds")
            self.client.set_model_version_tag(self.name, champion, ROLLED_BACK, now)
            history = history[: history.index(to)]
        else:
            history.append(champion)
        self._set_champion(to, [*history, to])
        return champion, to

    def _set_champion(self, version: str, history: list[str]) -> None:
        # the alias first: it is what clients load, the history is for the next rollback
        self.client.set_registered_model_alias(self.name, CHAMPION, version)
        self.client.set_registered_model_tag(self.name, _HISTORY, json.dumps(history))
        self.client.delete_model_version_tag(self.name, version, ROLLED_BACK)


def _manifest_digest(bundle: Path) -> str:
    path = bundle / MANIFEST
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


def example(manifest: dict[str, Any]) -> Any:
    """A request as a client sends it: two tokens, and the routing of the first."""
    layers, top_k = len(manifest["layer_numbers"]), manifest["top_k"]
    rows = [{"tokens": ["\u0120the", "\u0120cat"], "routing": [[list(range(top_k))] * layers]}]
    import pandas as pd  # noqa: PLC0415 - only registering needs it

    return pd.DataFrame(rows), {"top": top_k, "every_token": False}
