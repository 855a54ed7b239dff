"""Prompts of files that hold ids alone: what all such importers check, and how they become a trace.

Shape suffixes as in `schema`; A routed tokens of all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.sources import name_of
from moe_beyond.traces.hidden import HiddenStates
from moe_beyond.traces.schema import RoutedPrompt, TraceMetadata

MAX_ROUTED = 8_000_000
"""Tokens times layers that one file may hold: more would need gigabytes of memory at once."""


def require_fewer(count: int, where: str) -> None:
    """Raise InputError for a file of more than `MAX_ROUTED` tokens times layers."""
    if count > MAX_ROUTED:
        raise InputError(
            f"{where}: {count} tokens times layers in one file, at most {MAX_ROUTED} can be read; split it"
        )


@dataclass(frozen=True)
class Routed:
    """One prompt of a file.

    Attributes:
        experts_TLK: Its experts.
        weights_TLK: Combine weights, or None.
        num_prefill: Its tokens of prefill; None: the format does not say, a person must.
        name: What the file calls the prompt; empty: nothing.
        token_ids_T: Ids of the tokenizer, or None.
        domain: Domain that the file names; empty: none.
        hidden_TLD: What each layer's router was given, float16, NaN where the engine left a layer out, or None.
    """

    experts_TLK: npt.NDArray[np.integer[Any]]
    weights_TLK: npt.NDArray[np.floating[Any]] | None = None
    num_prefill: int | None = None
    name: str = ""
    token_ids_T: npt.NDArray[np.integer[Any]] | None = None
    domain: str = ""
    hidden_TLD: npt.NDArray[np.float16] | None = None


def layer_places(
    layer_R: npt.NDArray[np.integer[Any]],
    numbers: npt.NDArray[np.integer[Any]],
    at: Callable[[int], str],
    counted: str = "",
) -> npt.NDArray[np.int64]:
    """Place of each row's layer among those with experts, int64 [R].

    Args:
        layer_R: Layers as the file numbers them.
        numbers: Those with experts, rising.
        at: Names a row.
        counted: How the file numbers them, for the message.

    Raises:
        InputError: A layer that is none of them.
    """
    wrong_R = ~np.isin(layer_R, numbers)
    if wrong_R.any():
        row = int(np.argmax(wrong_R))
        raise InputError(
            f"{at(row)}: layer is {layer_R[row]}, expected a layer with experts, {numbers[0]} to "
            f"{numbers[-1]}{counted}; --moe-layers names others"
        )
    return np.searchsorted(numbers, layer_R)


def require_experts(
    experts_AK: npt.NDArray[np.integer[Any]],
    weights_AK: npt.NDArray[np.floating[Any]] | None,
    shape: TraceMetadata,
    at: Callable[[int], str],
) -> None:
    """Raise InputError for experts that the model has not, and weights that are no finite numbers from 0.

    Args:
        experts_AK: Experts, a row a token and layer.
        weights_AK: Their weights, or None.
        shape: The model's shape.
        at: Names a row.
    """
    if experts_AK.shape[1] != shape.top_k:
        raise InputError(
            f"{at(0)}: {experts_AK.shape[1]} experts a token, the model has top-{shape.top_k}; --top-k names another"
        )
    wrong_A = ((experts_AK < 0) | (experts_AK >= shape.num_experts)).any(axis=1)
    if wrong_A.any():
        row = int(np.argmax(wrong_A))
        raise InputError(
            f"{at(row)}: experts {experts_AK[row].tolist()!s:.60}, the model has experts 0 to {shape.num_experts - 1}; "
            "check the file and the format"
        )
    if weights_AK is not None:
        if weights_AK.shape != experts_AK.shape:
            raise InputError(
                f"{at(0)}: {weights_AK.shape[1]} weights for {experts_AK.shape[1]} experts; one each is needed"
            )
        # float16 holds no more
        wrong_A = ~((weights_AK >= 0) & (weights_AK <= 65504)).all(axis=1)
        if wrong_A.any():
            row = int(np.argmax(wrong_A))
            raise InputError(
                f"{at(row)}: weights {weights_AK[row].tolist()!s:.60}, expected finite numbers from 0; check the format"
            )


def routed_prompts(
    found: Sequence[Routed], name: str, where: str, domain: str, prefill_tokens: str | None
) -> list[RoutedPrompt]:
    """The prompts of one file, named after it.

    Args:
        found: What the file holds.
        name: The file's name in its source; empty: the prompts are named by the data set alone.
        where: Names the file in messages.
        domain: Name of the data set.
        prefill_tokens: What a person says of prefill: `all`, or the number of a prompt's first tokens.

    Raises:
        InputError: Nobody says which tokens are prefill, or the number is larger than the prompt.
    """
    stem = str(PurePosixPath(name).with_suffix("")) if name else ""
    prompts = []
    for number, routed in enumerate(found):
        named = routed.name or (f"prompt_{number}" if len(found) > 1 else "")
        tokens = len(routed.experts_TLK)
        prompts.append(
            RoutedPrompt(
                prompt_id="/".join(part for part in (domain, stem, named) if part),
                domain=routed.domain or domain,
                num_prefill=_num_prefill(routed, prefill_tokens, tokens, len(found), where),
                experts_TLK=routed.experts_TLK,
                weights_TLK=routed.weights_TLK,
                token_ids_T=routed.token_ids_T,
                hidden=None if routed.hidden_TLD is None else _complete(routed.hidden_TLD),
            )
        )
    return prompts


def _num_prefill(routed: Routed, said: str | None, tokens: int, prompts: int, where: str) -> int:
    if said is None:
        if routed.num_prefill is None:
            raise InputError(
                f"{where}: the format does not say which tokens are the prompt's; give --prefill-tokens: how many of "
                "the first ones were prefill, 0 for none, or all"
            )
        return routed.num_prefill
    if said == "all":
        return tokens
    if not (said.isascii() and said.isdecimal() and len(said) < 10):
        raise InputError(f"prefill tokens {said!r:.40}: expected a number from 0, or all")
    if int(said) > tokens or (int(said) and prompts > 1):
        raise InputError(
            f"{where}: --prefill-tokens {said} for {prompts} prompt{'s' * (prompts > 1)}, this one of {tokens} tokens; "
            "give all, 0, or the length of the prompt of a single one"
        )
    return int(said)


def half(hidden: npt.NDArray[np.floating[Any]], where: str) -> npt.NDArray[np.float16]:
    """Hidden states in half precision, cut to its range. Raises InputError if they are not finite."""
    if not np.isfinite(hidden).all():
        raise InputError(f"{where}: hidden states that are not finite; the engine's numbers broke: record again")
    halves: npt.NDArray[np.float16] = np.clip(hidden, -65504, 65504).astype(np.float16)
    return halves


def _complete(hidden_TLD: npt.NDArray[np.float16]) -> HiddenStates:
    """Hidden states of the tokens that have them in all layers."""
    kept_T = ~np.isnan(hidden_TLD).any(axis=(1, 2))
    rows_T = np.where(kept_T, np.cumsum(kept_T) - 1, -1)
    return HiddenStates(rows_T.astype(np.int64), tuple(range(hidden_TLD.shape[1])), hidden_TLD[kept_T])


def placed(where: str, what: str = "row", per: int = 1) -> Callable[[int], str]:
    """Names a row, or of several in one the one that they belong to, in messages."""
    return lambda row: f"{where}: {what} {row // per}"


def data_set(source: Path, domain: str | None) -> str:
    """Name of the data set: the given one, or the source's."""
    return domain or name_of(source)
