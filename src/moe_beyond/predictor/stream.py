"""A predictor in a decode loop: one prompt, token by token and layer by layer.

Shape suffixes: B batch, S tokens in the state, L MoE layers, E experts, K top-k, M = 2 * K, G n-grams, N blocks,
D width, H horizon (row h is h + 1 layers ahead), W width of the layer step, R its reach, Z hidden size of the traced
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_beyond.data.features import Features
from moe_beyond.errors import InputError
from moe_beyond.predictor.base import Floats, sigmoid

if TYPE_CHECKING:
    from moe_beyond.predictor.runtime import OnnxPredictor


@dataclass
class LayerState:
    """State of the layer step from one layer of a token to the next."""

    logits_BLE: Floats
    context_BW: Floats
    evidence_BRE: Floats


class Ran(NamedTuple):
    """What the token step gave for a stretch of one prompt.

    Attributes:
        logits_TLE: Of each token's own use.
        context_TW: The layer step's state ahead of each token.
        keys_BNSD: State after it.
        values_BNSD: State after it.
        later_TLE: Log-odds of later use; None of a predictor that says nothing of it.
    """

    logits_TLE: Floats
    context_TW: Floats
    keys_BNSD: Floats
    values_BNSD: Floats
    later_TLE: Floats | None


@dataclass
class Stream:
    """One prompt being decoded: `step` ahead of each token, `layer_step` after each of its routers but the last.

    `prefill` ahead of the first of them takes in many tokens at once.

    Attributes:
        predictor: Whose steps run.
        keys_BNSD: State of the token step.
        values_BNSD: State of the token step.
        later_logits_LE: Log-odds float32 of how often the tokens after the last `step` will use each expert; None
            before the first, and where the predictor says nothing of it.
    """

    predictor: OnnxPredictor
    keys_BNSD: Floats = field(init=False)
    values_BNSD: Floats = field(init=False)
    later_logits_LE: Floats | None = field(init=False, default=None)
    _routed_LK: dict[str, npt.NDArray[np.int64]] = field(init=False, default_factory=dict)
    _last_token: str | None = field(init=False, default=None)
    _layers: LayerState | None = field(init=False, default=None)
    _hidden: bool = field(init=False, default=False)
    _next_layer: int = field(init=False, default=0)

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
        expected = (predictor.num_layers, predictor.top_k)
        previous_LK = none_LK = np.full(expected, predictor.num_experts, np.int64)
        if previous_experts_LK is not None:
            previous_LK = _checked(previous_experts_LK, expected, predictor.num_experts, "previous routing")
            if self._last_token is not None:
                self._routed_LK[self._last_token] = previous_LK
        self._last_token = token
        previous_LM = np.concatenate([previous_LK, self._routed_LK.get(token, none_LK)], axis=1)
        return sigmoid(self.step_logits(tokens_T[0], letters_TG[0], previous_LM))

    def prefill(self, tokens: Sequence[str], experts_TLK: npt.ArrayLike) -> None:
        """Take in a prompt whose routing is known, ahead of its first decoded token.

        Args:
            tokens: Strings of the prompt's tokens, as the tokenizer writes them.
            experts_TLK: What the router chose for each of them.

        Raises:
            InputError: As `step`.
        """
        predictor = self.predictor
        shape = (len(tokens), predictor.num_layers, predictor.top_k)
        routed_TLK = _checked(experts_TLK, shape, predictor.num_experts, "routing of the prompt")
        tokens_T, letters_TG = predictor.encoder.encode(tokens)
        previous_TLM = np.full((*shape[:2], 2 * predictor.top_k), predictor.num_experts, np.int64)
        previous_TLM[1:, :, : predictor.top_k] = routed_TLK[:-1]
        for place, token in enumerate(tokens):
            if place:
                self._routed_LK[tokens[place - 1]] = routed_TLK[place - 1]
            if token in self._routed_LK:
                previous_TLM[place, :, predictor.top_k :] = self._routed_LK[token]
        self._last_token = tokens[-1]
        ran = predictor.run(Features(tokens_T, letters_TG, previous_TLM), self.keys_BNSD, self.values_BNSD)
        self.keys_BNSD, self.values_BNSD = ran.keys_BNSD, ran.values_BNSD

    def layer_step(self, layer: int, experts_K: npt.ArrayLike, gate_input_Z: npt.ArrayLike | None = None) -> Floats:
        """Probability of each expert for the next layers of this token, after the router of a layer chose.

        Args:
            layer: Index of that layer among the MoE layers, 0 to L - 2; each once, in order.
            experts_K: What it chose, in the router's order.
            gate_input_Z: What it read, for all layers of a token or for none, where the predictor reads hidden states.

        Returns:
            float32 [H, E]; row h is for layer `layer + 1 + h`, and zero where the model has no such layer. With what
            routers read, H may be another than without.

        Raises:
            InputError: Out of order, or the experts are not what the model's router could choose.
        """
        predictor = self.predictor
        experts_1K = _checked(experts_K, (predictor.top_k,), predictor.num_experts, f"routing of layer {layer}")[None]
        gate_input_1Z = None
        if gate_input_Z is not None:
            gate_input_1Z = np.asarray(gate_input_Z, np.float32)[None]
            if gate_input_1Z.shape != (1, predictor.hidden_size) or not np.isfinite(gate_input_1Z).all():
                raise InputError(
                    f"gate input of layer {layer}: shape {gate_input_1Z.shape[1:]}, expected {predictor.hidden_size} "
                    "finite numbers (0: the predictor reads no hidden states)"
                )
        logits_HE = self.layer_logits(layer, experts_1K, gate_input_1Z)
        probabilities_HE = sigmoid(logits_HE)
        probabilities_HE[predictor.num_layers - 1 - layer :] = 0
        return probabilities_HE

    def step_logits(self, token: Any, letters_G: npt.NDArray[np.int64], previous_LM: npt.NDArray[np.int64]) -> Floats:
        """Logits float32 [L, E] for features that are encoded already."""
        features = Features(np.array([token], np.int64), letters_G[None], previous_LM[None])
        ran = self.predictor.run(features, self.keys_BNSD, self.values_BNSD)
        self.keys_BNSD, self.values_BNSD = ran.keys_BNSD, ran.values_BNSD
        self.later_logits_LE = None if ran.later_TLE is None else ran.later_TLE[0]
        self._layers, self._next_layer = self.predictor.layer_state(ran.logits_TLE, ran.context_TW), 0
        return np.asarray(ran.logits_TLE[0])

    def layer_logits(
        self, layer: int, experts_1K: npt.NDArray[np.int64], gate_input_1Z: Floats | None = None
    ) -> Floats:
        """Logits float32 [H, E] for the next layers; rows past the last layer mean nothing."""
        last = self.predictor.num_layers - 2
        if self._layers is None or layer != self._next_layer or layer > last:
            due = "step" if self._layers is None or self._next_layer > last else f"layer {self._next_layer}"
            raise InputError(f"layer step of layer {layer}: {due} is due; give layers 0 to {last} once, in order")
        hidden = gate_input_1Z is not None
        if layer == 0:
            self._hidden = hidden
        if hidden != self._hidden:
            raise InputError(f"layer step of layer {layer}: give gate inputs for all layers of a token, or for none")
        logits_BHE, self._layers = self.predictor.run_layer(layer, experts_1K, self._layers, gate_input_1Z)
        self._next_layer += 1
        return np.asarray(logits_BHE[0])


def _checked(experts: npt.ArrayLike, shape: tuple[int, ...], num_experts: int, what: str) -> npt.NDArray[np.int64]:
    """Expert ids as int64, or an InputError that names what is wrong with them."""
    ids = np.asarray(experts, np.int64)
    if ids.shape != shape:
        meaning = "layers x top-k" if len(shape) == 2 else "top-k"
        raise InputError(f"{what} has shape {ids.shape}, expected {meaning} {shape}")
    if ids.min() < 0 or ids.max() >= num_experts:
        raise InputError(f"{what} names an expert outside 0 to {num_experts - 1}")
    return ids
