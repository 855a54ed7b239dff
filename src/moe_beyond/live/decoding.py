"""Decoding of prompts by a model whose experts are offloaded: what is generated, and what it took.

Shape suffixes: T tokens, V vocabulary, M experts of the model.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from moe_beyond.capture.generation import SeededSampler, end_ids, pad_id, require_context
from moe_beyond.capture.prompts import EncodedPrompt
from moe_beyond.capture.settings import ExtractSettings
from moe_beyond.live.offloaded import OffloadedExperts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_FEW = 3
"""Tokens that a warm-up reads: several, as a prefill does, since code is compiled anew for arrays of one row."""
_SWITCH_S = 2e-4
"""How long a thread may keep the interpreter from another: the link must not wait for the model's bookkeeping."""


@dataclass
class Decoded:
    """What one prompt led to.

    Attributes:
        prompt_id: Its name.
        token_ids_T: int64, the prompt and what was decoded after it; the last was chosen and not read.
        num_prefill: Tokens of the prompt.
        logits_TV: float32, of each pass's last token; empty unless they are kept.
    """

    prompt_id: str
    token_ids_T: torch.Tensor
    num_prefill: int
    logits_TV: list[torch.Tensor] = field(default_factory=list)


class _Given(LogitsProcessor):
    """Chooses the tokens of a given text, whatever the model says."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = token_ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.FloatTensor:
        chosen = torch.full_like(scores, -torch.inf)
        place = input_ids.shape[1]
        # the last one is chosen and never read
        chosen[:, self._token_ids[place] if place < len(self._token_ids) else 0] = 0.0
        return cast(torch.FloatTensor, chosen)


def decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedPrompt],
    experts: OffloadedExperts | None,
    settings: ExtractSettings,
    *,
    seed: int,
    given: Sequence[Sequence[int]] | None = None,
    keep_logits: bool = False,
    progress: Callable[[Decoded], None] | None = None,
) -> list[Decoded]:
    """Run prompts one after another, each with a prefill and then token by token.

    Args:
        model: In evaluation mode.
        tokenizer: Gives the strings that a predictor reads.
        prompts: What to read first.
        experts: What stands before the model's experts; None: its own are in memory.
        settings: How many tokens to decode, and how to choose them, as capture does.
        seed: Of sampling, as for capture.
        given: Read these tokens of each prompt, the prompt among them, instead of choosing any.
        keep_logits: Keep the logits of each pass's last token.
        progress: Called after each prompt.

    Raises:
        InputError: A prompt is too long for the model's context; or what loading experts runs into.
    """
    require_context(model, list(prompts), settings.decode_tokens if given is None else 0)
    done = []
    with torch.inference_mode(), _quick_switches():
        for number, prompt in enumerate(prompts):
            text = None if given is None else given[number]
            done.append(_decode_one(model, tokenizer, prompt, number, experts, settings, seed, text, keep_logits))
            if progress is not None:
                progress(done[-1])
    return done


def _decode_one(  # noqa: PLR0917 - one prompt of `decode`
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: EncodedPrompt,
    number: int,
    experts: OffloadedExperts | None,
    settings: ExtractSettings,
    seed: int,
    given: Sequence[int] | None,
    keep_logits: bool,
) -> Decoded:
    decoded = Decoded(prompt.prompt_id, torch.tensor(prompt.token_ids), len(prompt.token_ids))
    passes = 0

    def before(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if experts is not None:
            tokens = tuple(tokenizer.convert_ids_to_tokens(ids[0].tolist()))
            experts.begin_step(number, tokens, decodes=passes > 0, starts_prompt=passes == 0)

    def after(_module: torch.nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        nonlocal passes
        passes += 1
        if keep_logits:
            decoded.logits_TV.append(output.logits[0, -1].float().cpu())
        if experts is not None:
            experts.end_step()

    num_new = settings.decode_tokens if given is None else len(given) - len(prompt.token_ids)
    choose: LogitsProcessor | None = None
    if given is not None:
        choose = _Given(given)
    elif settings.decoding == "sampled":
        choose = SeededSampler([prompt.prompt_id], seed, settings.temperature, settings.top_p)
    config = GenerationConfig(
        # the last one is chosen and not read
        max_new_tokens=num_new + 1,
        do_sample=False,
        eos_token_id=None if given is not None else end_ids(model) or None,
        pad_token_id=pad_id(model),
        use_cache=True,
    )
    hooks = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after),
    ]
    try:
        network: Any = model  # transformers' stubs take generate() for a tensor
        ids_1T = torch.tensor([prompt.token_ids], device=model.device)
        sequences: torch.Tensor = network.generate(
            input_ids=ids_1T,
            attention_mask=torch.ones_like(ids_1T),
            generation_config=config,
            logits_processor=LogitsProcessorList([] if choose is None else [choose]),
        )
    finally:
        for hook in hooks:
            hook.remove()
    decoded.token_ids_T = sequences[0].cpu()
    return decoded


@contextmanager
def _quick_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def warm_up(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: EncodedPrompt,
    offload: Callable[[], AbstractContextManager[OffloadedExperts]],
) -> None:
    """Decode a token that nobody measures: what is compiled or allocated at the first use is there afterwards.

    Args:
        model: As for `decode`.
        tokenizer: As for `decode`.
        prompt: Its first tokens alone are read.
        offload: Puts something before the model's experts that is of no further use.
    """
    short = [replace(prompt, token_ids=prompt.token_ids[:_FEW])]
    given = [[*prompt.token_ids[:_FEW], 0, 0]]
    with offload() as experts:
        decode(model, tokenizer, short, experts, ExtractSettings(), seed=0, given=given)


def peak_memory_mib() -> float:
    """The most memory that this program has had, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # the system's other figure counts what the process held before it became this program
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
