"""One trial: fit a candidate and replay a cache with its predictions.

Shape suffixes: T tokens, L MoE layers, E experts, H horizons.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from moe_beyond.errors import InputError
from moe_beyond.network.checkpoint import Checkpoint
from moe_beyond.network.onnx import torch_logits
from moe_beyond.predictor.base import Floats, sigmoid
from moe_beyond.threads import torch_threads
from moe_beyond.traces.schema import Trace
from moe_beyond.training.fit import fit
from moe_beyond.tuning.candidates import Candidate, charged, parts
from moe_beyond.tuning.inputs import Inputs
from moe_beyond.tuning.optuna_study import Outcome


def measure(inputs: Inputs, scratch: Path, index: int, candidate: Candidate) -> Outcome:
    """Fit a candidate and measure it; a fit that was interrupted goes on where it was.

    Args:
        inputs: Of the search.
        scratch: Of the search, on this machine.
        index: Of the candidate.
        candidate: What to try.
    """
    folder = scratch / f"candidate-{index}"
    folder.mkdir(parents=True, exist_ok=True)
    size, settings = parts(candidate, inputs.train)
    # trials run side by side: each has one device, and on a CPU one thread
    settings = settings.model_copy(update={"devices": 1, "num_nodes": 1, "strategy": "auto", "threads": 1})
    train, validation, bench = inputs.train_prompts, inputs.validation, inputs.bench
    latency = charged(candidate, inputs.train, train.metadata, inputs.hidden_size)
    # a worker that lost its heartbeat may still fit this candidate: wait for it
    with FileLock(folder / "lock"), torch_threads(1):
        try:
            fitted = fit(train, validation, size, settings, epochs=inputs.tune.epochs, seed=inputs.seed, scratch=folder)
        except InputError as error:
            return Outcome({}, [], str(error))
        payoff = bench.payoff(Predicted.by(fitted.checkpoint, bench.trace), latency)
    best = fitted.metrics()
    ahead = "hidden_1" if fitted.checkpoint.hidden_step is not None else "ahead_1"
    numbers = {
        "recall_at_k": best["validation_recall_at_k"],
        "recall_at_k_ahead_1": best[f"validation_recall_at_k_{ahead}"],
    }
    numbers["parameters"] = sum(value for name, value in best.items() if name.endswith("parameters"))
    return Outcome(numbers | asdict(payoff), list(fitted.history))


@dataclass(frozen=True)
class Predicted:
    """Predictions of the steps for one trace, in PyTorch: export checks that ONNX predicts the same.

    Attributes:
        token_TLE: float32, the token step's logits.
        layers_HTLE: float32, the layer step's logits: with hidden states where it reads them and the trace has them.
    """

    token_TLE: Floats
    layers_HTLE: Floats
    name: str = "predictor"

    @classmethod
    def by(cls, checkpoint: Checkpoint, trace: Trace) -> Predicted:
        """Predict every token of a trace."""
        prompts = [trace.select(np.array([p])) for p in range(trace.num_prompts)]
        token, layers = zip(*(torch_logits(checkpoint, prompt, prompt.hidden) for prompt in prompts), strict=True)
        return cls(np.concatenate(token), np.concatenate(layers, axis=1))

    def probabilities_TLE(self, trace: Trace) -> Floats:
        """As in `Predictor`, for the one trace."""
        return sigmoid(self.token_TLE)

    def layer_probabilities_HTLE(self, trace: Trace) -> Floats:
        """As in `LayerPredictor`, for the one trace."""
        return sigmoid(self.layers_HTLE)
