"""The deployable predictor: onnxruntime and numpy, no torch.

Shape suffixes: B batch, T tokens, S tokens in the state, L MoE layers, E experts, K top-k, G n-grams, N blocks,
D width.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from moe_beyond.data.features import Features, token_features
from moe_beyond.data.tokens import TokenEncoder
from moe_beyond.errors import InputError
from moe_beyond.traces.schema import Trace

GRAPH_FILE = "token_step.onnx"
METADATA_KEY = "moe_beyond"
FORMAT_VERSION = 1
OUTPUTS = ("logits", "new_keys", "new_values")

Floats = npt.NDArray[np.float32]


@dataclass
class Stream:
    """One prompt being decoded: feed it token by token."""

    predictor: OnnxPredictor
    keys_BNSD: Floats = field(init=False)
    values_BNSD: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.keys_BNSD, self.values_BNSD = self.predictor.empty_state()

    def step(self, token: str, previous_experts_LK: npt.ArrayLike | None) -> Floats:
        """Probability of each expert for this token, ahead of its first layer.

        Args:
            token: The token's string, as the tokenizer writes it.
            previous_experts_LK: What the router chose for the token before; None at a prompt's first token.

        Returns:
            float32 [L, E].

        Raises:
            InputError: The routing has another shape or names an expert that the model does not have.
        """
        predictor = self.predictor
        tokens_T, letters_TG = predictor.encoder.encode([token])
        expected = (len(predictor.layer_numbers), predictor.top_k)
        if previous_experts_LK is None:
            previous_LK = np.full(expected, predictor.num_experts, np.int64)
        else:
            previous_LK = np.asarray(previous_experts_LK, np.int64)
            if previous_LK.shape != expected:
                raise InputError(f"previous routing has shape {previous_LK.shape}, expected layers x top-k {expected}")
            if previous_LK.min() < 0 or previous_LK.max() >= predictor.num_experts:
                raise InputError(f"previous routing names an expert outside 0 to {predictor.num_experts - 1}")
        return sigmoid(self.step_logits(tokens_T[0], letters_TG[0], previous_LK))

    def step_logits(self, token: Any, letters_G: npt.NDArray[np.int64], previous_LK: npt.NDArray[np.int64]) -> Floats:
        """Logits float32 [L, E] for features that are encoded already."""
        features = Features(np.array([token], np.int64), letters_G[None], previous_LK[None])
        logits_TLE, self.keys_BNSD, self.values_BNSD = self.predictor.run(features, self.keys_BNSD, self.values_BNSD)
        return np.asarray(logits_TLE[0])


class OnnxPredictor:
    """A predictor directory, opened. Implements `predictor.base.Predictor`.

    Attributes:
        layer_numbers: MoE layers that it answers for.
        num_experts: Experts in each.
        top_k: Experts that the traced model's router chooses.
        model_id: The traced model.
    """

    def __init__(self, directory: Path, *, file: str = GRAPH_FILE, threads: int = 1, name: str = "predictor") -> None:
        """Open the graph.

        Args:
            directory: Holds the ONNX file.
            file: Its name.
            threads: Of onnxruntime.
            name: In tables and plots.

        Raises:
            InputError: No such file, not an ONNX file, or one without our metadata or of a newer format.
        """
        path = directory / file
        if not path.exists():
            raise InputError(f"{path}: no such file; run the export stage first")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except (RuntimeError, ort.capi.onnxruntime_pybind11_state.InvalidProtobuf) as error:
            raise InputError(f"{path}: not an ONNX file that onnxruntime can open; export it again") from error
        properties = self._session.get_modelmeta().custom_metadata_map
        if METADATA_KEY not in properties:
            raise InputError(f"{path}: no {METADATA_KEY!r} metadata; use a file that the export stage wrote")
        description = json.loads(properties[METADATA_KEY])
        if description["format_version"] > FORMAT_VERSION:
            raise InputError(f"{path}: format version {description['format_version']} is newer than this release")
        self.path, self._name = path, name
        self.model_id: str = description["model_id"]
        self.layer_numbers: tuple[int, ...] = tuple(description["layer_numbers"])
        self.num_experts: int = description["num_experts"]
        self.top_k: int = description["top_k"]
        self.window: int = description["window"]
        self._depth, self._width = description["depth"], description["width"]
        self.encoder = TokenEncoder(tuple(description["known_tokens"]), description["letter_buckets"])

    @property
    def name(self) -> str:
        """Name in tables and plots."""
        return self._name

    def stream(self) -> Stream:
        """Start a prompt."""
        return Stream(self)

    def empty_state(self) -> tuple[Floats, Floats]:
        """Keys and values ahead of a prompt's first token, float32 [1, N, 0, D]."""
        empty = np.zeros((1, self._depth, 0, self._width), np.float32)
        return empty, empty

    def run(self, features: Features, keys_BNSD: Floats, values_BNSD: Floats) -> tuple[Floats, Floats, Floats]:
        """Logits [T, L, E] of a stretch of one prompt, and the state after it."""
        inputs = {
            "tokens": features.tokens_T[None],
            "letters": features.letters_TG[None],
            "previous_experts": features.previous_TLK[None],
            "keys": keys_BNSD,
            "values": values_BNSD,
        }
        logits_BTLE, keys_BNSD, values_BNSD = self._session.run(list(OUTPUTS), inputs)
        return logits_BTLE[0], keys_BNSD, values_BNSD

    def probabilities_TLE(self, trace: Trace) -> Floats:
        """Probability of each expert ahead of each token, float32 [T, L, E].

        Raises:
            InputError: The trace's layers, experts or top-k are not those the predictor was trained for.
        """
        self._require_same_model(trace)
        features = token_features(trace, self.encoder)
        probabilities_TLE = np.empty((trace.num_tokens, len(self.layer_numbers), self.num_experts), np.float32)
        for start, end in zip(trace.prompt_offsets[:-1].tolist(), trace.prompt_offsets[1:].tolist(), strict=True):
            prompt = Features(
                features.tokens_T[start:end], features.letters_TG[start:end], features.previous_TLK[start:end]
            )
            logits_TLE, _, _ = self.run(prompt, *self.empty_state())
            probabilities_TLE[start:end] = sigmoid(logits_TLE)
        return probabilities_TLE

    def latency_ms(self, repeats: int) -> float:
        """Median milliseconds of a single-token step with a full state, after warm-up, on this session's threads."""
        draw = np.random.default_rng(0)
        state = draw.standard_normal((1, self._depth, self.window - 1, self._width), np.float32)
        _, letters_TG = self.encoder.encode([" example"])
        previous_TLK = draw.integers(0, self.num_experts, (1, len(self.layer_numbers), self.top_k))
        features = Features(np.zeros(1, np.int64), letters_TG, previous_TLK)
        times = []
        for repeat in range(repeats + 10):
            start = time.perf_counter()
            self.run(features, state, state)
            if repeat >= 10:
                times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e3

    def _require_same_model(self, trace: Trace) -> None:
        meta = trace.metadata
        mine = (self.layer_numbers, self.num_experts, self.top_k)
        theirs = (meta.layer_numbers, meta.num_experts, meta.top_k)
        if mine != theirs:
            raise InputError(
                f"{self.path}: made for {len(mine[0])} layers, {mine[1]} experts, top-{mine[2]} ({self.model_id}); the "
                f"trace has {len(theirs[0])} layers, {theirs[1]} experts, top-{theirs[2]} ({meta.model_id})"
            )


def sigmoid(logits: Floats) -> Floats:
    """Logistic function, without overflow, float32."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), np.float32)
