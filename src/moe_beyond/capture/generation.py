"""Runs prompts through a model, prefill and decode, and keeps the routing of real tokens only.

Shape suffixes: B prompts of a batch, C columns of the padded batch, V vocabulary, T tokens of one prompt, L MoE layers,
K experts per token.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from moe_beyond.capture.prompts import EncodedPrompt, PaddedBatch, pad
from moe_beyond.errors import InputError
from moe_beyond.traces.hidden import HiddenStates
from moe_beyond.traces.schema import RoutedPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from moe_beyond.capture.hooks import Routing, RoutingRecorder
    from moe_beyond.capture.settings import ExtractSettings


class SeededSampler(LogitsProcessor):
    """Draws each prompt's next token from a random stream of its own, so that generate() has nothing else to choose.

    A stream depends on the seed and the prompt's id, so the other prompts of a batch do not change what is drawn.
    """

    def __init__(self, prompt_ids: list[str], seed: int, temperature: float, top_p: float) -> None:
        self._streams = [np.random.default_rng([seed, *_words(prompt_id)]) for prompt_id in prompt_ids]
        self._temperature = temperature
        self._warper = TopPLogitsWarper(top_p) if top_p < 1 else None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.FloatTensor:
        """Scores that are 0 for the drawn token and minus infinity for all others, float32 [B, V]."""
        logits_BV: torch.Tensor = scores.float() / self._temperature
        if self._warper is not None:
            logits_BV = self._warper(cast(torch.LongTensor, input_ids), cast(torch.FloatTensor, logits_BV))
        cumulative_BV = logits_BV.double().softmax(dim=-1).cumsum(dim=-1)
        # open interval from above: a draw of the whole mass would point past the last token
        draws = torch.tensor([[stream.random()] for stream in self._streams], dtype=torch.float64)
        targets_B1 = draws.to(cumulative_BV.device) * cumulative_BV[:, -1:]
        drawn_B1 = torch.searchsorted(cumulative_BV, targets_B1, right=True)
        chosen_BV = torch.full_like(logits_BV, -torch.inf).scatter_(1, drawn_B1, 0.0)
        return cast(torch.FloatTensor, chosen_BV)


def _words(text: str) -> list[int]:
    return [int(word) for word in np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32)]


def route_batch(
    model: PreTrainedModel,
    recorder: RoutingRecorder,
    prompts: list[EncodedPrompt],
    settings: ExtractSettings,
    seed: int,
) -> list[RoutedPrompt]:
    """Prefill and decode `prompts` together; their tokens that were routed, experts in falling order of weight.

    The last sampled token is not among them: the model never read it. Hidden states are those that `recorder` keeps, of
    the prompts that `keeps_hidden` names.

    Args:
        model: In evaluation mode.
        recorder: Entered, on `model`'s layers.
        prompts: The batch.
        settings: Number of tokens to decode and how to choose them, and the share of prompts with hidden states.
        seed: Of sampling, and of that share.
    """
    batch, sequences_BC = run_batch(model, prompts, settings, seed)
    columns = real_columns(batch, sequences_BC, end_ids(model))
    routing = recorder.take(len(prompts))
    routed = routing.experts_BCLK.shape[1]
    if max(int(real[-1]) for real in columns) >= routed:
        raise InputError(f"the model routed {routed} tokens of a sequence that is longer; it cannot be traced")
    return [
        RoutedPrompt(
            prompt_id=prompt.prompt_id,
            domain=prompt.domain,
            held_out=prompt.held_out,
            num_prefill=len(prompt.token_ids),
            token_ids_T=sequences_BC[row, real].numpy(),
            experts_TLK=routing.experts_BCLK[row, real].numpy(),
            weights_TLK=routing.weights_BCLK[row, real].numpy(),
            hidden=_hidden(
                routing, row, real, recorder.hidden_layers, keep=keeps_hidden(prompt.prompt_id, settings, seed)
            ),
        )
        for row, (prompt, real) in enumerate(zip(prompts, columns, strict=True))
    ]


def keeps_hidden(prompt_id: str, settings: ExtractSettings, seed: int) -> bool:
    """Whether the hidden states of a prompt are kept: whole prompts, whatever the others are."""
    digest = hashlib.blake2b(f"hidden states {seed} {prompt_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < settings.hidden_share * 2**64


def _hidden(
    routing: Routing, row: int, real: npt.NDArray[np.int64], layers: tuple[int, ...], *, keep: bool
) -> HiddenStates | None:
    """Hidden states of a prompt; of one that is not kept, none of its tokens."""
    if routing.gate_inputs_BCYD is None:
        return None
    kept = real if keep else real[:0]

    def rows(values: torch.Tensor | None) -> Any:
        return None if values is None else values[row, kept].numpy()

    return HiddenStates(
        rows_T=np.arange(len(real)) if keep else np.full(len(real), -1),
        layers=layers,
        gate_inputs_SYD=rows(routing.gate_inputs_BCYD),
        layer_inputs_SYD=rows(routing.layer_inputs_BCYD),
        final_states_SD=rows(routing.final_states_BCD),
    )


def run_batch(
    model: PreTrainedModel, prompts: list[EncodedPrompt], settings: ExtractSettings, seed: int
) -> tuple[PaddedBatch, torch.Tensor]:
    """Run the model over `prompts` as `route_batch` does, whether or not anything records it.

    Returns:
        The padded prompts, and the same with what was decoded after them, int64 [B, C].
    """
    padding = pad_id(model)
    with torch.inference_mode():
        if settings.decode_tokens > 0:
            batch = pad(prompts, padding, "left")
            return batch, _generate(model, batch, prompts, settings, seed)
        # right padding: positions count from each prompt's first token without any help
        batch = pad(prompts, padding, "right")
        model.base_model(
            input_ids=batch.ids_BC.to(model.device), attention_mask=batch.mask_BC.to(model.device), use_cache=False
        )
        return batch, batch.ids_BC


def require_context(model: PreTrainedModel, prompts: list[EncodedPrompt], decode_tokens: int) -> None:
    """Raise InputError for a prompt that, with the tokens to decode, is longer than the model's context."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for prompt in prompts:
        length = len(prompt.token_ids) + decode_tokens
        if context is not None and length > context:
            raise InputError(
                f"prompt {prompt.prompt_id!r} has {len(prompt.token_ids)} tokens, with {decode_tokens} to decode more "
                f"than the model's context of {context}; shorten it or lower extract.decode_tokens"
            )


def _generate(
    model: PreTrainedModel, batch: PaddedBatch, prompts: list[EncodedPrompt], settings: ExtractSettings, seed: int
) -> torch.Tensor:
    sampler = SeededSampler([prompt.prompt_id for prompt in prompts], seed, settings.temperature, settings.top_p)
    config = GenerationConfig(
        # one more than is routed: the last token is chosen but never read
        max_new_tokens=settings.decode_tokens + 1,
        do_sample=False,
        eos_token_id=end_ids(model) or None,
        pad_token_id=pad_id(model),
        use_cache=True,
    )
    network: Any = model  # transformers' stubs take generate() for a tensor
    sequences_BC: torch.Tensor = network.generate(
        input_ids=batch.ids_BC.to(model.device),
        attention_mask=batch.mask_BC.to(model.device),
        generation_config=config,
        logits_processor=LogitsProcessorList([sampler] if settings.decoding == "sampled" else []),
    )
    return sequences_BC.cpu()


def real_columns(batch: PaddedBatch, sequences_BC: torch.Tensor, ends: list[int]) -> list[npt.NDArray[np.int64]]:
    """Columns of each row that hold routed tokens of the prompt: no padding, nothing from the last token on.

    A row's last token is the end token where there is one, else the last that was generated; it is chosen, not read.
    """
    width = batch.ids_BC.shape[1]
    columns = []
    for row, mask_C in enumerate(batch.mask_BC):
        prompt = mask_C.nonzero().flatten().numpy()
        decoded = sequences_BC[row, width:].numpy()
        stops = np.flatnonzero(np.isin(decoded, ends))
        last = int(stops[0]) if len(stops) else max(len(decoded) - 1, 0)
        columns.append(np.concatenate([prompt, width + np.arange(last)]))
    return columns


def end_ids(model: PreTrainedModel) -> list[int]:
    """Token ids that end a text, as the model's generation config or else its config says."""
    for config in (model.generation_config, model.config.get_text_config()):
        ends = getattr(config, "eos_token_id", None)
        if ends is not None:
            return [int(end) for end in (ends if isinstance(ends, list | tuple) else [ends])]
    return []


def pad_id(model: PreTrainedModel) -> int:
    """The token id that pads: the model's own, else an end token."""
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    if padding is not None and padding >= 0:
        return int(padding)
    # any id: padding is masked and its routing dropped
    return (end_ids(model) or [0])[0]
