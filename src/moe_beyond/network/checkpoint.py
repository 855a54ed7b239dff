"""A trained predictor on disk: weights of its steps as safetensors, everything else as JSON. No pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from moe_beyond.data.tokens import TokenEncoder
from moe_beyond.errors import InputError
from moe_beyond.files import replacing
from moe_beyond.network.hidden_step import HiddenStep
from moe_beyond.network.layer_step import LayerStep
from moe_beyond.network.network import TokenStep
from moe_beyond.predictor.shape import NetworkShape
from moe_beyond.traces.schema import TraceMetadata

FORMAT_VERSION = 3


@dataclass(frozen=True)
class Checkpoint:
    """The steps and what is needed to feed them.

    Attributes:
        network: The token step, in evaluation mode.
        layer_step: The layer step that goes on from it, in evaluation mode.
        encoder: Turns token strings into its inputs.
        trained_on: The traced model, whose layers, experts and top-k the network predicts.
        hidden_step: The layer step that reads hidden states, or None.
    """

    network: TokenStep
    layer_step: LayerStep
    encoder: TokenEncoder
    trained_on: TraceMetadata
    hidden_step: HiddenStep | None = None

    @property
    def modules(self) -> nn.ModuleDict:
        """Every step by its name."""
        steps: dict[str, nn.Module] = {"token_step": self.network, "layer_step": self.layer_step}
        return nn.ModuleDict(steps if self.hidden_step is None else steps | {"hidden_step": self.hidden_step})


def save_checkpoint(checkpoint: Checkpoint, directory: Path) -> None:
    """Write `weights.safetensors` and `network.json`; replaces `directory`."""
    description = {
        "format_version": FORMAT_VERSION,
        "shape": asdict(checkpoint.network.shape),
        "letter_buckets": checkpoint.encoder.letter_buckets,
        "trained_on": checkpoint.trained_on.model_dump(),
        "known_tokens": checkpoint.encoder.known,
    }
    with replacing(directory) as temporary:
        temporary.mkdir()
        weights = checkpoint.modules.state_dict()
        save_file({name: x.contiguous() for name, x in weights.items()}, temporary / "weights.safetensors")
        (temporary / "network.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")


def load_checkpoint(directory: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: There is none, or a release of another format wrote it.
    """
    try:
        description = json.loads((directory / "network.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{directory}: no network.json; run the train stage first") from error
    if description["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{directory}: format version {description['format_version']}, this release reads {FORMAT_VERSION}; "
            "run the train stage again"
        )
    shape = NetworkShape(**description["shape"])
    encoder = TokenEncoder(tuple(description["known_tokens"]), description["letter_buckets"])
    trained_on = TraceMetadata.model_validate(description["trained_on"])
    hidden_step = HiddenStep(shape) if shape.reads_hidden else None
    checkpoint = Checkpoint(TokenStep(shape), LayerStep(shape), encoder, trained_on, hidden_step)
    modules = checkpoint.modules
    modules.load_state_dict(load_file(directory / "weights.safetensors"))
    modules.eval()
    return checkpoint
