"""The candidates of the search: sizes, and perhaps other parameters of the fit, drawn before any is tried.

Shape suffixes: C candidates of the space, N searched names.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from moe_beyond.errors import InputError
from moe_beyond.predictor.latency import Latency, modelled
from moe_beyond.traces.schema import TraceMetadata
from moe_beyond.training.settings import TrainSettings
from moe_beyond.training.size import Size, network_shape
from moe_beyond.tuning.settings import SearchSpace, TuneSettings

Candidate = dict[str, Any]
"""Width, depth, heads, and the searched parameters of `train`, by name."""

_SIZE = tuple(field.name for field in fields(Size))


@dataclass(frozen=True)
class Drawn:
    """The candidates of a search.

    Attributes:
        candidates: In the order in which they are tried; each once.
        latencies: What is charged for the steps of each, in milliseconds.
        infeasible: How many of the space are slower than `tune.max_latency_ms`.
    """

    candidates: tuple[Candidate, ...]
    latencies: tuple[Latency, ...]
    infeasible: int


def choices(space: SearchSpace) -> dict[str, tuple[Any, ...]]:
    """The values of each searched name."""
    return {name: tuple(getattr(space, name)) for name in _SIZE} | dict(space.train)


def parts(candidate: Mapping[str, Any], settings: TrainSettings) -> tuple[Size, TrainSettings]:
    """The size, and the fit's parameters with those of the candidate in place."""
    size = Size(**{name: candidate[name] for name in _SIZE})
    others = {name: value for name, value in candidate.items() if name not in _SIZE}
    return size, settings.model_copy(update=others)


def charged(candidate: Candidate, settings: TrainSettings, traced: TraceMetadata, hidden_size: int = 0) -> Latency:
    """What is charged for a candidate's steps: arithmetic, so that it is the same on every machine.

    Args:
        candidate: Sizes and parameters.
        settings: Of a fit, where the candidate says nothing.
        traced: The model whose routing is predicted.
        hidden_size: Of its hidden states, where the layer step reads them; 0: it does not.
    """
    # how many token strings are known decides the weights, not the time
    shape = network_shape(traced, 1, *parts(candidate, settings), hidden_size)
    return modelled(shape).with_hidden() if shape.reads_hidden else modelled(shape)


def draw(tune: TuneSettings, train: TrainSettings, traced: TraceMetadata, seed: int, hidden_size: int = 0) -> Drawn:
    """The candidates of a warm start, then a sample of the feasible ones that fills the space, the slowest first.

    The slowest take longest to fit: with several workers, the last ones to finish are short.

    Args:
        tune: Space, limit and number.
        train: Parameters of a fit that are not searched.
        traced: The model whose routing is predicted.
        seed: Of the sample.
        hidden_size: Of the traces' hidden states; 0: there are none.

    Raises:
        InputError: No candidate is fast enough, or the warm start holds none of the space.
    """
    named = choices(tune.space)
    space = [dict(zip(named, values, strict=True)) for values in itertools.product(*named.values())]
    latencies = [charged(candidate, train, traced, hidden_size) for candidate in space]
    feasible = [i for i, latency in enumerate(latencies) if latency.token_step_ms <= tune.max_latency_ms]
    if not feasible:
        fastest = min(latency.token_step_ms for latency in latencies)
        raise InputError(
            f"params.yaml: tune.max_latency_ms: {tune.max_latency_ms} ms, but the fastest candidate is charged "
            f"{fastest} ms; raise it or widen tune.space"
        )
    first = [] if tune.warm_start is None else _earlier(Path(tune.warm_start), space, feasible)[: tune.trials]
    free = [i for i in feasible if i not in first]
    # a Latin hypercube: the values of each name about equally often
    count, rng = min(tune.trials - len(first), len(free)), np.random.default_rng(seed)
    points_CN = np.stack([(rng.permutation(count) + 0.5) / count for _ in named], axis=1)
    values_CN = np.array(list(itertools.product(*((np.arange(len(v)) + 0.5) / len(v) for v in named.values()))))
    sample: list[int] = []
    for point_N in points_CN:
        distance_C = np.abs(values_CN - point_N).sum(1)
        sample.append(min(set(free) - set(sample), key=lambda i: (distance_C[i], i)))
    chosen = [*first, *sorted(sample, key=lambda i: (-latencies[i].token_step_ms, i))]
    return Drawn(
        tuple(space[i] for i in chosen), tuple(latencies[i] for i in chosen), infeasible=len(space) - len(feasible)
    )


def _earlier(path: Path, space: list[Candidate], feasible: list[int]) -> list[int]:
    """Feasible candidates that stand in an earlier `trials.csv`, fastest per token first."""
    try:
        rows = pl.read_csv(path, glob=False).sort("ms_per_token", nulls_last=True, maintain_order=True).to_dicts()
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"tune.warm_start: {path}: {reason}; give a copy of an earlier trials.csv") from error
    found = [i for row in rows for i in feasible if all(row.get(name) == value for name, value in space[i].items())]
    if not found:
        raise InputError(f"tune.warm_start: {path} holds no feasible candidate of tune.space; change one of them")
    return list(dict.fromkeys(found))
