"""The deployable predictor: onnxruntime and numpy, no torch.

Shape suffixes: B batch, T tokens, S tokens in the state, L MoE layers, E experts, K top-k, G n-grams, N blocks,
D width, H horizon (row h is h + 1 layers ahead), W width of the layer step, R its reach, Z hidden size of the traced
model.
"""

from __future__ import annotations

from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_beyond.data.duplicates import seen_prompts
from moe_beyond.data.features import Features, token_features
from moe_beyond.data.tokens import TokenEncoder
from moe_beyond.errors import InputError
from moe_beyond.predictor.base import Floats, sigmoid
from moe_beyond.predictor.contents import Contents
from moe_beyond.predictor.graph_file import GraphFile, Precision, Step, graph_file
from moe_beyond.predictor.latency import Latency, median_ms, read_charge
from moe_beyond.predictor.stream import LayerState, Ran, Stream
from moe_beyond.traces.hidden import HiddenStates
from moe_beyond.traces.schema import ExpertIds, Trace, TraceMetadata

TRAINING_PROMPTS = "training_prompts.txt"
"""In a predictor directory: digests of the prompts that it was fitted on, a line each (`data.duplicates`)."""
_BATCH_TOKENS = 1024
"""Tokens whose layer steps run at once: more would leave the processor's caches."""


class OnnxPredictor:
    """A predictor directory, opened. Implements `predictor.base.LayerPredictor`.

    Attributes:
        name: In tables and plots.
        path: File of the token step.
        precision: Of the files.
        layer_numbers: MoE layers that it predicts.
        num_experts: Experts in each.
        top_k: Experts that the traced model's router chooses.
        model_id: The traced model.
        hidden_size: Of the traced model, where there is a layer step that reads its hidden states; else 0.
        uses_hidden: Whether whole traces are predicted with their hidden states; see `reading`.
        window: Tokens that the token step looks back over.
        encoder: Turns token strings into inputs.
    """

    def __init__(
        self,
        directory: Path,
        *,
        precision: Precision = "fp32",
        threads: int = 1,
        name: str = "predictor",
        finished: bool = True,
    ) -> None:
        """Open the token step; the layer step is opened at its first use.

        Args:
            directory: Holds the ONNX files.
            precision: Which of them.
            threads: Of onnxruntime.
            name: In tables and plots.
            finished: False while the directory is being written and has no manifest.

        Raises:
            InputError: No such file, not an ONNX file, or one without our metadata or of another format.
            TamperedError: A file is not the one that was exported.
        """
        self.precision = precision
        self._files, self._threads, self.name = Contents(directory, finished=finished), threads, name
        self._token = self._open("token_step")
        self.path, description = self._token.path, self._token.description
        self.model_id: str = description.model_id
        self.layer_numbers: tuple[int, ...] = description.layer_numbers
        self.num_experts: int = description.num_experts
        self.top_k: int = description.top_k
        self.hidden_size: int = description.hidden_size
        self.uses_hidden = False
        self.window: int = description.window
        self._depth, self._width = description.depth, description.width
        self.encoder = TokenEncoder(description.known_tokens or (), description.letter_buckets or 0)

    @property
    def num_layers(self) -> int:
        """MoE layers, L."""
        return len(self.layer_numbers)

    @property
    def predicts_later(self) -> bool:
        """Whether it says how often later tokens will use each expert."""
        return "later" in self._token.outputs

    @property
    def horizon(self) -> int:
        """How many layers ahead the layer step predicts."""
        description = self._token.description
        return description.hidden_horizon if self.uses_hidden else description.horizon

    def reading(self, trace: Trace) -> OnnxPredictor:
        """The same predictor for a trace: with its hidden states where it has some and the predictor reads them.

        Raises:
            InputError: The trace has hidden states of another width.
        """
        if trace.hidden is None or not self.hidden_size:
            return self
        if trace.hidden.width != self.hidden_size:
            raise InputError(
                f"{self.path}: reads hidden states of {self.hidden_size} numbers, the trace has "
                f"{trace.hidden.width}; use a predictor of this model"
            )
        return self.beside_a_model()

    def beside_a_model(self) -> OnnxPredictor:
        """The same predictor where a model runs, whose hidden states are at hand: with them if it reads them."""
        with_hidden = copy(self)
        with_hidden.uses_hidden = self.hidden_size > 0
        return with_hidden

    @cached_property
    def _layer(self) -> GraphFile:
        return self._beside("layer_step")

    @cached_property
    def _hidden(self) -> GraphFile:
        return self._beside("hidden_step")

    def _beside(self, step: Step) -> GraphFile:
        """A step of the same fit as the token step."""
        file = self._open(step)
        if self._token.description.fit != file.description.fit:
            raise InputError(f"{file.path}: from another fit than {self.path.name}; export all steps again")
        return file

    def _open(self, step: Step) -> GraphFile:
        file = graph_file(step, self.precision)
        return GraphFile(self._files.directory / file, self._files.read(file), step, self._threads)

    def stream(self) -> Stream:
        """Start a prompt."""
        return Stream(self)

    def empty_state(self) -> tuple[Floats, Floats]:
        """Keys and values ahead of a prompt's first token, float32 [1, N, 0, D]."""
        empty = np.zeros((1, self._depth, 0, self._width), np.float32)
        return empty, empty

    def run(self, features: Features, keys_BNSD: Floats, values_BNSD: Floats) -> Ran:
        """The token step over a stretch of one prompt.

        Raises:
            InputError: The state has the wrong shape.
        """
        inputs: dict[str, npt.NDArray[Any]] = {
            "tokens": features.tokens_T[None],
            "letters": features.letters_TG[None],
            "previous_experts": features.previous_TLM[None],
            "keys": keys_BNSD,
            "values": values_BNSD,
        }
        logits_BTLE, keys_BNSD, values_BNSD, context_BTW, *later = self._token.run(inputs)
        return Ran(logits_BTLE[0], context_BTW[0], keys_BNSD, values_BNSD, later[0][0] if later else None)

    def layer_state(self, logits_BLE: Floats, context_BW: Floats) -> LayerState:
        """State ahead of the first layer of each token, from what `run` gave."""
        evidence_BRE = np.zeros((len(logits_BLE), self._token.description.reach, self.num_experts), np.float32)
        return LayerState(logits_BLE, context_BW, evidence_BRE)

    def run_layer(
        self,
        layer: int,
        experts_BK: npt.NDArray[np.int64],
        state: LayerState,
        gate_inputs_BZ: Floats | None = None,
    ) -> tuple[Floats, LayerState]:
        """Logits [B, H, E] for the layers after `layer`, and the state after it.

        Args:
            layer: Index of the layer whose router chose.
            experts_BK: What it chose.
            state: As of the layer before, of the same step: with hidden states, or without.
            gate_inputs_BZ: What it read; None: the step without hidden states runs.

        Raises:
            InputError: The state has the wrong shape.
        """
        inputs: dict[str, npt.NDArray[Any]] = {
            "layer": np.array([layer], np.int64),
            "experts": experts_BK,
            "token_logits": state.logits_BLE,
            "context": state.context_BW,
            "evidence": state.evidence_BRE,
        }
        if gate_inputs_BZ is not None:
            inputs["gate_input"] = gate_inputs_BZ
        step = self._layer if gate_inputs_BZ is None else self._hidden
        logits_BHE, context_BW, evidence_BRE = step.run(inputs)
        return logits_BHE, LayerState(state.logits_BLE, context_BW, evidence_BRE)

    def probabilities_TLE(self, trace: Trace) -> Floats:
        """Probability of each expert ahead of each token, float32 [T, L, E].

        Raises:
            InputError: The trace's layers, experts or top-k are not those the predictor was trained for.
        """
        return sigmoid(self._token_step(trace)[0])

    def later_TLE(self, trace: Trace) -> Floats | None:
        """How often the tokens after each one will use each expert, float32 [T, L, E] in [0, 1].

        Of the tokens to come, each counts half as much as the one before it. None: an older predictor, which does not
        say.

        Raises:
            InputError: As `probabilities_TLE`.
        """
        later_TLE = self._token_step(trace)[2]
        return None if later_TLE is None else sigmoid(later_TLE)

    def both_logits(self, trace: Trace) -> tuple[Floats, Floats]:
        """Logits of the token step [T, L, E] and of the layer step [H, T, L, E], as in `LayerPredictor`."""
        logits_TLE, context_TW, _ = self._token_step(trace)
        layers_HTLE = np.repeat(logits_TLE[None], self.horizon, axis=0)
        for start in range(0, trace.num_tokens, _BATCH_TOKENS):
            tokens_N = np.arange(start, min(start + _BATCH_TOKENS, trace.num_tokens))
            kept_N = np.zeros(len(tokens_N), bool)
            if self.uses_hidden and trace.hidden is not None:
                kept_N = np.asarray(trace.hidden.rows_T)[tokens_N] >= 0
            for those_N, hidden in ((tokens_N[kept_N], trace.hidden), (tokens_N[~kept_N], None)):
                if len(those_N):
                    state = self.layer_state(logits_TLE[those_N], context_TW[those_N])
                    layers_HTLE[:, those_N] = self._layers(trace.experts_TLK[those_N], state, hidden, those_N)
        return logits_TLE, layers_HTLE

    def layer_probabilities_HTLE(self, trace: Trace) -> Floats:
        """Probability of each expert at each horizon, float32 [H, T, L, E], as in `LayerPredictor`."""
        return sigmoid(self.both_logits(trace)[1])

    @property
    def charge(self) -> Latency:
        """What is charged for its steps wherever a time is shown. Raises InputError as `latency.read_charge`."""
        return self._charge.with_hidden() if self.uses_hidden else self._charge

    @cached_property
    def _charge(self) -> Latency:
        return read_charge(self._files)

    def refuse_training_prompts(self, trace: Trace) -> None:
        """Raise InputError where the predictor was fitted on prompts of this trace, which would flatter it."""
        seen = seen_prompts(trace, self._files.read(TRAINING_PROMPTS).decode(errors="replace").split())
        if seen:
            raise InputError(
                f"{len(seen)} of {trace.num_prompts} prompts ({seen[0]!r} for one) took part in the fit of "
                f"{self._files.directory}; give other prompts, or go on with --allow-training-prompts"
            )

    def token_step_ms(self, repeats: int) -> float:
        """Median milliseconds of a single-token step with a full state, after warm-up, on this session's threads."""
        draw = np.random.default_rng(0)
        state = draw.standard_normal((1, self._depth, self.window - 1, self._width), np.float32)
        _, letters_TG = self.encoder.encode([" example"])
        previous_TLM = draw.integers(0, self.num_experts, (1, self.num_layers, 2 * self.top_k))
        features = Features(np.zeros(1, np.int64), letters_TG, previous_TLM)
        return median_ms(lambda: self.run(features, state, state), repeats)

    def layer_step_ms(self, repeats: int, *, hidden: bool | None = None) -> float:
        """Median milliseconds of the layer step of one layer of one token, as `token_step_ms`.

        Args:
            repeats: Of the measurement.
            hidden: Of the one with hidden states; None: of the one that whole traces are predicted with.
        """
        draw = np.random.default_rng(0)
        logits_BLE = draw.standard_normal((1, self.num_layers, self.num_experts), np.float32)
        context_BW = draw.standard_normal((1, self._token.description.layer_width), np.float32)
        state = self.layer_state(logits_BLE, context_BW)
        experts_BK = draw.integers(0, self.num_experts, (1, self.top_k))
        hidden = self.uses_hidden if hidden is None else hidden
        gates_BZ = draw.standard_normal((1, self.hidden_size), np.float32) if hidden else None
        return median_ms(lambda: self.run_layer(0, experts_BK, state, gates_BZ), repeats)

    def _token_step(self, trace: Trace) -> tuple[Floats, Floats, Floats | None]:
        """Of every token logits [T, L, E], contexts [T, W] and log-odds of later use [T, L, E]."""
        self.require_model(trace.metadata)
        features = token_features(trace, self.encoder)
        parts = []
        for start, end in zip(trace.prompt_offsets[:-1].tolist(), trace.prompt_offsets[1:].tolist(), strict=True):
            prompt = Features(
                features.tokens_T[start:end], features.letters_TG[start:end], features.previous_TLM[start:end]
            )
            parts.append(self.run(prompt, *self.empty_state()))
        later = [part.later_TLE for part in parts if part.later_TLE is not None]
        logits_TLE, context_TW = (np.concatenate([part[column] for part in parts]) for column in range(2))
        return logits_TLE, context_TW, np.concatenate(later) if len(later) == len(parts) else None

    def _layers(
        self, experts_NLK: ExpertIds, state: LayerState, hidden: HiddenStates | None, tokens_N: npt.NDArray[np.int64]
    ) -> Floats:
        """Logits [H, N, L, E] of the layer step after each layer, for some tokens at once.

        Where nothing is known yet, and farther ahead than the step without hidden states looks, they are the token
        step's.
        """
        layers_HNLE = np.repeat(state.logits_BLE[None], self.horizon, axis=0)
        for layer in range(self.num_layers - 1):
            gates_NZ = None if hidden is None else hidden.of_layer(hidden.gate_inputs_SYD, layer, tokens_N)[0]
            logits_BHE, state = self.run_layer(layer, experts_NLK[:, layer].astype(np.int64), state, gates_NZ)
            for h in range(min(logits_BHE.shape[1], self.horizon, self.num_layers - 1 - layer)):
                layers_HNLE[h, :, layer + 1 + h] = logits_BHE[:, h]
        return layers_HNLE

    def require_model(self, meta: TraceMetadata) -> None:
        """Raise InputError where it was made for another model."""
        mine = (self.layer_numbers, self.num_experts, self.top_k)
        theirs = (meta.layer_numbers, meta.num_experts, meta.top_k)
        if mine != theirs:
            raise InputError(
                f"{self.path}: made for {len(mine[0])} layers, {mine[1]} experts, top-{mine[2]} ({self.model_id}); "
                f"{meta.model_id} has {len(theirs[0])} layers, {theirs[1]} experts, top-{theirs[2]}"
            )
