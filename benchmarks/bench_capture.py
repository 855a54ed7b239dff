"""What capture costs. Prints a line `NAME VALUE TARGET` for each promise; exits 1 if one is not kept.

    python benchmarks/bench_capture.py

The reference model's architecture runs the same prompts plain and recorded, turn by turn. Times are processor time of
one thread, so that neighbours on the machine do not enter them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.capture.generation import route_batch, run_batch
from moe_beyond.capture.hooks import Kept, RoutingRecorder
from moe_beyond.capture.prompts import EncodedPrompt
from moe_beyond.capture.reference import corpus
from moe_beyond.capture.reference import model as reference_model
from moe_beyond.capture.reference.settings import ReferenceSettings
from moe_beyond.capture.settings import ExtractSettings
from moe_beyond.threads import torch_threads

MOST = 1.10
PAIRS, PROMPTS, PROMPT_TOKENS, DECODE_TOKENS = 31, 16, 64, 16


@dataclass(frozen=True)
class Result:
    """A measured ratio and the most that it may be."""

    name: str
    value: float

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g} <={MOST:.4g}"


def measure() -> Iterator[Result]:
    """Yield the ratio of recorded to plain for a prefill and for a generation, without and with hidden states."""
    tokenizer = reference_model.train_tokenizer(corpus.english(), ReferenceSettings().vocabulary_size)
    # random weights do as much work as trained ones
    model = reference_model.build(ReferenceSettings(), tokenizer, seed=1).eval()
    rng = np.random.default_rng(1)
    rows = rng.integers(1, len(tokenizer), (PROMPTS, PROMPT_TOKENS)).tolist()
    prompts = [EncodedPrompt(str(number), "random", False, tuple(row)) for number, row in enumerate(rows)]
    runs = {"prefill": ExtractSettings(decode_tokens=0), "generate": ExtractSettings(decode_tokens=DECODE_TOKENS)}
    for name, settings in runs.items():
        suffixes: dict[Kept, str] = {"none": "", "gates": "_gate_inputs", "all": "_hidden_states"}
        for kept, suffix in suffixes.items():
            recorder = RoutingRecorder(moe_layers(model), kept, model=model)

            def plain(settings: ExtractSettings = settings) -> None:
                run_batch(model, prompts, settings, seed=1)

            def recorded(settings: ExtractSettings = settings, recorder: RoutingRecorder = recorder) -> None:
                with recorder:
                    route_batch(model, recorder, prompts, settings, seed=1)

            yield Result(f"capture_{name}{suffix}_ratio", ratio(recorded, plain))


def ratio(one: Callable[[], None], other: Callable[[], None]) -> float:
    """Processor time of `one` over that of `other`: the median over pairs, which take turns at going first.

    A pair is over in half a second, so that a neighbour who slows the machine slows both.
    """
    one()
    other()
    ratios = []
    for turn in range(PAIRS):
        order = (one, other) if turn % 2 else (other, one)
        seconds = {run: processor_seconds(run) for run in order}
        ratios.append(seconds[one] / seconds[other])
    return statistics.median(ratios)


def processor_seconds(run: Callable[[], None]) -> float:
    """Time that this process computed while `run` ran."""
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    with torch_threads(1):
        results = []
        for result in measure():
            print(result)
            results.append(result)
    sys.exit(0 if all(result.value <= MOST for result in results) else 1)


if __name__ == "__main__":
    main()
