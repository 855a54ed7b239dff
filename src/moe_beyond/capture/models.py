"""Loads the model and tokenizer to trace, with an error of one line where it cannot."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.hub import resolve_revision

from moe_beyond.errors import InputError, first_line_of

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
    with loading(source) as options:
        config = AutoConfig.from_pretrained(source.location, **options)
        tokenizer = AutoTokenizer.from_pretrained(source.location, **options)
        # without a map, transformers needs no accelerate
        device_map = None if source.device_map == "cpu" else source.device_map
        model = AutoModelForCausalLM.from_pretrained(
            source.location, config=config, dtype=source.dtype, device_map=device_map, **options
        )
        return LoadedModel(model.eval(), tokenizer, revision(source, options))


@contextmanager
def loading(source: ModelSource) -> Iterator[dict[str, Any]]:
    """Options for every `from_pretrained` of a source, all of one commit; what transformers cannot load ends here.

    Raises:
        InputError: As `load` does.
    """
    folder = Path(source.location)
    if folder.exists() and not (folder / "config.json").exists():
        raise InputError(f"{folder}: no config.json there; expected a folder written by save_pretrained")
    if source.device_map != "cpu" and find_spec("accelerate") is None:
        raise InputError(
            f"traces.transformers.device_map: {source.device_map!r} needs the package accelerate; run `pip install "
            "accelerate` or set it to cpu"
        )
    with in_one_line(source):
        commit = resolve_revision(source.location, source.revision)
        yield {"revision": commit, "trust_remote_code": source.trust_remote_code}


@contextmanager
def in_one_line(source: ModelSource) -> Iterator[None]:
    """Raise what transformers says about a source as an InputError of one line."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        fix = (
            "expected a folder of a causal language model with its tokenizer"
            if Path(source.location).exists()
            else "check the id, the network and, for a private model, HF_TOKEN; or give a local folder"
        )
        reason = first_line_of(error).rstrip(".:")
        raise InputError(f"{source.location}: cannot be loaded ({reason}); {fix}") from error


def revision(source: ModelSource, options: Mapping[str, Any]) -> str:
    """The hub's commit, or a digest of a local folder's config and weight files.

    Args:
        source: Where the model comes from.
        options: What `loading` gave for it.
    """
    commit = getattr(options["revision"], "resolved", None)
    if commit:
        return str(commit)
    folder = Path(source.location)
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
