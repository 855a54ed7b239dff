"""What a trial tries: a size, and perhaps other parameters of the fit, as one flat dict for storage and tables."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from optuna.trial import Trial

from moe_beyond.training.fit import Size
from moe_beyond.training.settings import TrainSettings
from moe_beyond.tuning.settings import SearchSpace

Candidate = dict[str, Any]
"""Width, depth, heads, and the searched parameters of `train`, by name."""

SIZE = tuple(field.name for field in fields(Size))


def choices(space: SearchSpace) -> dict[str, tuple[Any, ...]]:
    """The values of each searched name."""
    return {name: tuple(getattr(space, name)) for name in SIZE} | dict(space.train)


def suggest(trial: Trial, space: SearchSpace) -> Candidate:
    """Let the study's sampler draw a candidate."""
    return {name: trial.suggest_categorical(name, values) for name, values in choices(space).items()}


def all_candidates(space: SearchSpace) -> list[Candidate]:
    """Every candidate of the space, in a fixed order."""
    named = choices(space)
    return [dict(zip(named, values, strict=True)) for values in itertools.product(*named.values())]


def key_of(candidate: Mapping[str, Any]) -> str:
    """The same text for the same candidate."""
    return json.dumps(dict(candidate), sort_keys=True)


def parts(candidate: Mapping[str, Any], settings: TrainSettings) -> tuple[Size, TrainSettings]:
    """The size, and the fit's parameters with those of the candidate in place."""
    size = Size(**{name: candidate[name] for name in SIZE})
    others = {name: value for name, value in candidate.items() if name not in SIZE}
    return size, settings.model_copy(update=others)


def no_larger(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a candidate is in no searched number larger than another, and so neither slower nor bigger.

    The number of heads divides the width among them: it costs nothing. Values that are no numbers must be equal.
    """
    for name, value in one.items():
        if name == "heads":
            continue
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (value, other[name]))
        if value > other[name] if numbers else value != other[name]:
            return False
    return True
