"""What the search chooses, and the shapes that follow. No torch here: the search draws candidates without it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml
from pydantic import ValidationError

from moe_beyond.errors import InputError
from moe_beyond.predictor.shape import NetworkShape
from moe_beyond.traces.schema import TraceMetadata
from moe_beyond.training.settings import TrainSettings


@dataclass(frozen=True)
class Size:
    """Of the token step: width, number of transformer blocks, heads of the attention."""

    width: int
    depth: int
    heads: int


def read_choice(path: Path, settings: TrainSettings) -> tuple[Size, TrainSettings]:
    """The size that the search wrote, and the parameters with what it chose beside the size.

    Args:
        path: Width, depth and heads, and perhaps parameters of `train`.
        settings: Where the search chose nothing.

    Raises:
        InputError: The file is missing or does not hold the three numbers, or what else it holds is no such parameter.
    """
    try:
        chosen = yaml.safe_load(path.read_text(encoding="utf-8"))
        size = Size(**{field.name: chosen.pop(field.name) for field in fields(Size)})
        return size, TrainSettings.model_validate(settings.model_dump() | chosen)
    except (FileNotFoundError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: expected width, depth and heads ({error}); run the tune stage first") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: train.{first['loc'][0]}: {first['msg']}; run the tune stage again") from error


def network_shape(
    traced: TraceMetadata, num_tokens: int, size: Size, settings: TrainSettings, hidden_size: int = 0
) -> NetworkShape:
    """Shapes of all steps.

    Args:
        traced: The model whose routing is predicted.
        num_tokens: Token strings with an embedding of their own, and one row for all others.
        size: Of the token step.
        settings: Everything else.
        hidden_size: Of the traced model, where its hidden states are read; 0: they are not there.
    """
    shared = {field.name for field in fields(NetworkShape)} & TrainSettings.model_fields.keys()
    sizes = {name: getattr(settings, name) for name in shared} | asdict(size)
    reads_hidden = hidden_size > 0 and settings.hidden_states
    # both layer steps start from evidence of one size
    sizes["reach"] = max(settings.reach, settings.horizon, settings.hidden_horizon if reads_hidden else 0)
    return NetworkShape(
        num_layers=traced.num_layers,
        num_experts=traced.num_experts,
        top_k=traced.top_k,
        num_tokens=num_tokens,
        hidden_size=hidden_size if reads_hidden else 0,
        **sizes,
    )
