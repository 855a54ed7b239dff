"""Two sets of prompts, of which no prompt of one is in the other, nor nearly: what is fitted, and what judges it.

Shape suffix: P prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_beyond.data.duplicates import fingerprints, group_prompts, seen_prompts, training_marks
from moe_beyond.data.settings import SplitSettings
from moe_beyond.errors import InputError
from moe_beyond.traces.schema import Trace

_ONE_IN = 4
"""Groups of prompts of which one judges."""


@dataclass(frozen=True)
class Divided:
    """Prompts to fit to, and prompts to judge on.

    Attributes:
        fit: What is fitted to.
        judge: What judges.
        how: How they were told apart, for people.
    """

    fit: Trace
    judge: Trace
    how: str


def divide(trace: Trace, test: Trace | None = None) -> Divided:
    """Divide prompts.

    All prompts fit where others are given to judge; else those of held-out domains judge; else a quarter, near
    duplicates on one side, chosen by their content.

    Args:
        trace: Prompts to fit to.
        test: Others, to judge on; those that `trace` holds too are left out.

    Raises:
        InputError: `test` is of another model, or no prompt is left to judge or to fit to.
    """
    if test is not None:
        trace.metadata.require_same_model(test.metadata, "test trace")
        judge, seen = _unseen(trace, test)
        return Divided(trace, judge, f"on the test trace; {seen} of its prompts were left out, the profile holds them")
    held_P = trace.held_out_P
    if held_P.any() and not held_P.all():
        fit = trace.select(np.flatnonzero(~held_P))
        judge, seen = _unseen(fit, trace.select(np.flatnonzero(held_P)))
        return Divided(
            fit, judge, f"on held-out domains; {seen} of their prompts were left out, other domains hold them"
        )
    group_P = group_prompts(trace, SplitSettings())
    if len(np.unique(group_P)) < 2:
        raise InputError(
            "all prompts are the same or nearly, so that none can judge a placement made from the others; give other "
            "prompts with --test"
        )
    marks = fingerprints(trace)
    by_content = sorted(np.unique(group_P).tolist(), key=lambda group: min(_of(marks, group_P == group)))
    judges_P = np.isin(group_P, by_content[::_ONE_IN])
    fit, judge = (trace.select(np.flatnonzero(chosen_P)) for chosen_P in (~judges_P, judges_P))
    return Divided(fit, judge, "on a quarter of the distinct prompts, which took no part in the placement")


def _unseen(fit: Trace, judge: Trace) -> tuple[Trace, int]:
    seen = set(seen_prompts(judge, training_marks([fit])))
    left = [number for number, name in enumerate(judge.prompt_ids) if name not in seen]
    if not left:
        raise InputError("every prompt that could judge is among those that the placement is made from; give others")
    return judge.select(np.asarray(left, np.int64)), len(seen)


def _of(marks: list[str], chosen_P: np.ndarray) -> list[str]:
    return [mark for mark, chosen in zip(marks, chosen_P, strict=True) if chosen]
