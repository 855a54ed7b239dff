"""A trained network on disk: weights as safetensors, everything else as JSON. No pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from moe_beyond.data.tokens import TokenEncoder
from moe_beyond.errors import InputError
from moe_beyond.files import replacing
from moe_beyond.predictor.network import NetworkShape, TokenStep
from moe_beyond.traces.schema import TraceMetadata

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A network and what is needed to feed it.

    Attributes:
        network: In evaluation mode.
        encoder: Turns token strings into its inputs.
        trained_on: The traced model, whose layers, experts and top-k the network answers for.
    """

    network: TokenStep
    encoder: TokenEncoder
    trained_on: TraceMetadata


def save_checkpoint(checkpoint: Checkpoint, directory: Path) -> None:
    """Write `weights.safetensors` and `network.json`; replaces `directory`."""
    description = {
        "format_version": FORMAT_VERSION,
        "shape": checkpoint.network.shape.as_dict(),
        "letter_buckets": checkpoint.encoder.letter_buckets,
        "trained_on": checkpoint.trained_on.model_dump(),
        "known_tokens": checkpoint.encoder.known,
    }
    weights = {name: tensor.contiguous() for name, tensor in checkpoint.network.state_dict().items()}
    with replacing(directory) as temporary:
        temporary.mkdir()
        save_file(weights, temporary / "weights.safetensors")
        (temporary / "network.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")


def load_checkpoint(directory: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: There is none, or a newer release wrote it.
    """
    try:
        description = json.loads((directory / "network.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{directory}: no network.json; run the train stage first") from error
    if description["format_version"] > FORMAT_VERSION:
        raise InputError(f"{directory}: format version {description['format_version']} is newer than this release")
    network = TokenStep(NetworkShape(**description["shape"]))
    network.load_state_dict(load_file(directory / "weights.safetensors"))
    encoder = TokenEncoder(tuple(description["known_tokens"]), description["letter_buckets"])
    return Checkpoint(network.eval(), encoder, TraceMetadata.model_validate(description["trained_on"]))
