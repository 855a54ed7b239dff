"""How long the predictor's two steps take: what is charged for them wherever a time per token is shown.

Times measured on one machine would make every table depend on that machine. What is charged is therefore arithmetic: a
line in the numbers of operations, weights and layers of a step, fitted to measurements of many sizes (see
`benchmarks/latency.py`, docs/latency.csv) and raised by more than its largest error. Export measures each exported
graph beside it. Where that measurement is higher, as on a slower machine, the measurement is charged, rounded up to two
digits: what is charged is never below what was measured.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, replace
from decimal import ROUND_CEILING, Context
from pathlib import Path

from moe_beyond.errors import InputError
from moe_beyond.files import write_json
from moe_beyond.predictor.contents import Contents
from moe_beyond.predictor.shape import NetworkShape

FILE = "latency.json"
"""In a predictor directory: what is charged for its steps."""


_TOKEN_STEP = (0.0299, 0.0172, 0.0463, 0.0771, 0.499)
_LAYER_STEP = (0.0158, 0.0584, 0.768)
_TABLE = (0.0015, 0.5)
_HIDDEN_STEP = (0.0284, 0.118, 0.574)
"""Milliseconds a unit of each term below: medians on one thread of an AMD EPYC core of the Zen 5 generation with
onnxruntime 1.32. Largest errors over 44 sizes that were left out: -13 % and +12 % (token step), -20 % and +6 % (layer
step), -14 % and +17 % (layer step with hidden states)."""
_ROUNDS, _WARM_UP_RUNS = 3, 10
RAISED = 1.5
"""What is charged as a multiple of the fitted line."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds on one thread.

    Attributes:
        token_step_ms: Of a token step, ahead of a token's first layer.
        layer_step_ms: Of the layer step after one layer's router.
        table_ms: Of looking up a token in a table of counts, the main rival.
        hidden_step_ms: Of the layer step with hidden states; 0 where the predictor reads none.
    """

    token_step_ms: float
    layer_step_ms: float
    table_ms: float
    hidden_step_ms: float = 0.0

    def times(self, factor: float) -> Latency:
        """The same on a processor that is so many times slower."""
        return Latency(*(factor * ms for ms in astuple(self)))

    def with_hidden(self) -> Latency:
        """The same with the layer step that reads hidden states in the place of the other."""
        return replace(self, layer_step_ms=self.hidden_step_ms)


def modelled(shape: NetworkShape) -> Latency:
    """The charge by arithmetic alone: the same on every machine."""
    lines = (
        zip(_TOKEN_STEP, token_step_terms(shape), strict=True),
        zip(_LAYER_STEP, layer_step_terms(shape), strict=True),
        zip(_TABLE, (1.0, shape.num_layers * shape.num_experts / 1e6), strict=True),
        zip(_HIDDEN_STEP, hidden_step_terms(shape), strict=True) if shape.reads_hidden else (),
    )
    return Latency(*(round_up(RAISED * sum(ms * term for ms, term in line)) for line in lines))


def charged(shape: NetworkShape, measured: Latency) -> Latency:
    """The arithmetic charge, or where that is less what was measured, rounded up to two digits."""
    pairs = zip(astuple(modelled(shape)), astuple(measured), strict=True)
    return Latency(*(max(line_ms, round_up(ms)) for line_ms, ms in pairs))


def token_step_terms(shape: NetworkShape) -> tuple[float, ...]:
    """Constant, blocks, millions of weights, of those the ones beyond 4 million, millions of values in the state."""
    routing = shape.num_layers * shape.num_experts
    # inputs of both histories, predictions of this token and of later ones
    weights = 4 * routing * shape.width + shape.width * (shape.embedding_width + shape.layer_width)
    weights += 12 * shape.depth * shape.width**2
    # up to 16 MiB of weights stay in the processor's caches from token to token
    beyond = max(0.0, weights / 1e6 - 4)
    return 1.0, float(shape.depth), weights / 1e6, beyond, 2 * shape.depth * shape.window * shape.width / 1e6


def layer_step_terms(shape: NetworkShape) -> tuple[float, ...]:
    """Constant, millions of weights, millions of values gathered."""
    weights = 2 * shape.layer_width * shape.layer_hidden + shape.layer_width * shape.horizon * shape.num_experts
    gathered = (shape.top_k + 1) * (shape.layer_width + shape.reach * shape.num_experts)
    return 1.0, weights / 1e6, gathered / 1e6


def hidden_step_terms(shape: NetworkShape) -> tuple[float, ...]:
    """As `layer_step_terms`, of the layer step with hidden states."""
    width, rank, units = shape.layer_width, shape.hidden_rank, shape.hidden_units
    weights = 2 * width * shape.layer_hidden + rank * (shape.hidden_size + width) + (width + rank) * units
    # the head, the layer's own router and the next layers'
    weights += (width + rank + units) * shape.hidden_horizon * shape.num_experts
    weights += shape.hidden_size * (shape.hidden_horizon + 1) * shape.num_experts
    reach = max(shape.reach, shape.hidden_horizon)
    gathered = (shape.top_k + 1) * (width + (reach + shape.hidden_horizon) * shape.num_experts)
    return 1.0, weights / 1e6, gathered / 1e6


def quietest(measure: Callable[[], Latency]) -> Latency:
    """Of three rounds the least of each time: other work on the machine only makes a round slower."""
    rounds = [measure() for _ in range(_ROUNDS)]
    return Latency(*(min(times) for times in zip(*map(astuple, rounds), strict=True)))


def median_ms(work: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of a call, after warm-up."""
    times = []
    for repeat in range(repeats + _WARM_UP_RUNS):
        start = time.perf_counter()
        work()
        if repeat >= _WARM_UP_RUNS:
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def write_charge(directory: Path, latency: Latency) -> None:
    """Write what is charged beside the graphs of a predictor directory."""
    write_json(directory / FILE, asdict(latency))


def read_charge(files: Contents) -> Latency:
    """What is charged for a predictor.

    Raises:
        InputError: The file is missing or not as `write_charge` makes it.
    """
    path, data = files.directory / FILE, files.read(FILE)
    try:
        found = Latency(**json.loads(data))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not a predictor's latency ({error}); export the predictor again") from error
    for name, value in asdict(found).items():
        if not (isinstance(value, int | float) and 0 <= value < math.inf):
            raise InputError(f"{path}: {name}: expected milliseconds, found {value!r}; export the predictor again")
    return found


def round_up(ms: float) -> float:
    """To two significant digits, never down."""
    return float(Context(prec=2, rounding=ROUND_CEILING).create_decimal(repr(float(ms))))
