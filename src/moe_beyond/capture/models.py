"""Loads the model and tokenizer to trace, with an error of one line where it cannot."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from moe_beyond.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from and how to load it; hashable, and small enough to send to another process.

    Attributes:
        location: Hub id or local folder.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Run code that comes with the model.
        device_map: As in transformers: `cpu`, `cuda`, `auto`, ...
        dtype: `auto` keeps the precision of the files.
    """

    location: str
    revision: str | None = None
    trust_remote_code: bool = False
    device_map: str = "cpu"
    dtype: str = "auto"


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, its tokenizer, and a revision that names its weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    revision: str


@lru_cache(maxsize=1)
def load(source: ModelSource) -> LoadedModel:
    """Load model and tokenizer; a process keeps the last one.

    Raises:
        InputError: A hub id that cannot be reached, a folder without a model or tokenizer.
    """
    folder = Path(source.location)
    if folder.exists() and not (folder / "config.json").exists():
        raise InputError(f"{folder}: no config.json there; expected a folder written by save_pretrained")
    if source.device_map != "cpu" and find_spec("accelerate") is None:
        raise InputError(
            f"traces.transformers.device_map: {source.device_map!r} needs the package accelerate; run `pip install "
            "accelerate` or set it to cpu"
        )
    fix = (
        "expected a folder of a causal language model with its tokenizer"
        if folder.exists()
        else "check the id, the network and, for a private model, HF_TOKEN; or give a local folder"
    )
    # without a map, transformers needs no accelerate
    device_map = None if source.device_map == "cpu" else source.device_map
    options = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source.location, **options)
        tokenizer = AutoTokenizer.from_pretrained(source.location, **options)
        model = AutoModelForCausalLM.from_pretrained(
            source.location, config=config, dtype=source.dtype, device_map=device_map, **options
        )
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise InputError(f"{source.location}: cannot be loaded ({reason}); {fix}") from error
    return LoadedModel(model.eval(), tokenizer, revision(model, folder))


def revision(model: PreTrainedModel, folder: Path) -> str:
    """The hub's commit, or a digest of a local folder's config and weight files."""
    commit = getattr(model.config, "_commit_hash", None)
    if commit:
        return str(commit)
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def library_versions() -> dict[str, str]:
    """Versions that a trace's bytes depend on."""
    # without the part that names the machine a wheel was built for
    return {name: version(name).partition("+")[0] for name in ("moe-beyond", "pyarrow", "torch", "transformers")}
