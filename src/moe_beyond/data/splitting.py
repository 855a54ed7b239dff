"""Train, validation, gate and test by distinct prompt, and what contamination was found on the way.

Shape suffixes: P prompts.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_beyond.data.duplicates import fingerprints, group_prompts
from moe_beyond.data.settings import SplitSettings
from moe_beyond.errors import InputError
from moe_beyond.traces.schema import Trace, concatenate

SPLITS = ("train", "validation", "gate_in_domain", "gate_out_of_domain", "test_in_domain", "test_out_of_domain")
"""Names of the splits; those out of domain are absent where a trace has no held-out domain."""
TEST, GATE = "test_", "gate_"
"""How the names begin of the splits that figures are reported on, and of those that choose the champion."""
EXCLUDED = "excluded"
"""Mark of a prompt in no split: an exact duplicate, or an in-domain prompt that a held-out domain repeats."""


@dataclass(frozen=True)
class Split:
    """Which split each prompt belongs to.

    Attributes:
        assignment: P names, one of `SPLITS` or `EXCLUDED`.
        fingerprints: P digests of the prompts' tokens.
        group_P: int64, equal for prompts that were kept together.
        report: Counts of prompts and tokens per split, and of the contamination found; numbers only.
    """

    assignment: tuple[str, ...]
    fingerprints: tuple[str, ...]
    group_P: npt.NDArray[np.int64]
    report: dict[str, Any]

    def prompts(self, split: str) -> npt.NDArray[np.int64]:
        """Indices of the split's prompts, rising."""
        return np.array([p for p, name in enumerate(self.assignment) if name == split], np.int64)

    def trace(self, parts: Sequence[Trace], split: str) -> Trace:
        """The split's prompts, in order.

        Args:
            parts: The divided trace in pieces, in order. A column that a piece lacks stays if no prompt of the split
                comes from that piece.
            split: One of `names`.
        """
        prompts = self.prompts(split)
        first_of_part = np.cumsum([0, *(part.num_prompts for part in parts)])
        part_P = np.searchsorted(first_of_part, prompts, side="right") - 1
        return concatenate(
            [
                part.select(prompts[part_P == number] - first_of_part[number])
                for number, part in enumerate(parts)
                if (part_P == number).any()
            ]
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The splits that have prompts, in the order of `SPLITS`."""
        return tuple(name for name in SPLITS if name in self.assignment)


def split_prompts(trace: Trace, settings: SplitSettings) -> Split:
    """Divide the prompts of a trace.

    Near duplicates stay together. A hash of a group's content decides its side, so that a prompt lands on the same
    side whatever the order of files, and whatever else is there unless that joins its group to another. A group that
    reaches into a held-out domain gives its held-out members to a split out of domain; the others are excluded.

    Raises:
        InputError: Fewer than four groups of in-domain prompts: not enough for train, validation, gate and test.
    """
    marks = fingerprints(trace)
    group_P = group_prompts(trace, settings)
    members: dict[int, list[int]] = {}
    for p, group in enumerate(group_P.tolist()):
        members.setdefault(group, []).append(p)
    held_out = {group for group, prompts in members.items() if trace.held_out_P[prompts].any()}
    keys = {group: _position(marks, prompts) for group, prompts in members.items() if group not in held_out}
    sides = _choose_sides(keys, settings)
    outside = {group: _position(marks, members[group]) for group in held_out}
    sides |= _choose_held_out_sides(outside, settings)

    assignment = []
    seen: set[str] = set()
    for p, group in enumerate(group_P.tolist()):
        side = EXCLUDED if group in held_out and not trace.held_out_P[p] else sides[group]
        if side != EXCLUDED and settings.exact_duplicates == "one":
            side = EXCLUDED if marks[p] in seen else side
            seen.add(marks[p])
        assignment.append(side)
    report = _report(trace, assignment, marks, list(members.values()))
    return Split(tuple(assignment), tuple(marks), group_P, report)


def _position(marks: list[str], prompts: list[int]) -> float:
    """A number in [0, 1) that depends only on the content of the group."""
    digest = hashlib.blake2b(min(marks[p] for p in prompts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _choose_sides(keys: dict[int, float], settings: SplitSettings) -> dict[int, str]:
    """The side of each in-domain group: [0, test) is test, then come validation, the gate, and train."""
    if len(keys) < 4:
        raise InputError(
            f"split: {len(keys)} distinct in-domain prompts; train, validation, gate and test need one each: "
            "trace more prompts that differ"
        )
    shares = (settings.test_fraction, settings.validation_fraction, settings.gate_fraction)
    bounds = itertools.pairwise((0.0, *itertools.accumulate(shares), 1.0))
    edges = dict(zip(("test_in_domain", "validation", "gate_in_domain", "train"), bounds, strict=True))
    sides = {
        group: next(name for name, (low, high) in edges.items() if low <= key < high) for group, key in keys.items()
    }
    for name, (low, high) in edges.items():
        # few prompts can leave a side empty: the group nearest to it moves, from a side that keeps another
        if name not in sides.values():
            counts = Counter(sides.values())
            spare = [group for group in keys if counts[sides[group]] > 1]
            sides[min(spare, key=lambda group: (max(low - keys[group], keys[group] - high), keys[group]))] = name
    return sides


def _choose_held_out_sides(keys: dict[int, float], settings: SplitSettings) -> dict[int, str]:
    """The side of each group of a held-out domain; the test keeps one at least."""
    share = settings.gate_held_out_fraction
    sides = {group: "gate_out_of_domain" if key < share else "test_out_of_domain" for group, key in keys.items()}
    if sides and "test_out_of_domain" not in sides.values():
        sides[max(keys, key=lambda group: keys[group])] = "test_out_of_domain"
    return sides


def _report(trace: Trace, assignment: list[str], marks: list[str], groups: list[list[int]]) -> dict[str, Any]:
    lengths = np.diff(trace.prompt_offsets)
    of_side = np.array(assignment)
    held_out = trace.held_out_P
    held_out_marks = {mark for mark, flag in zip(marks, held_out.tolist(), strict=True) if flag}
    in_domain_marks = [mark for mark, flag in zip(marks, held_out.tolist(), strict=True) if not flag]
    mixed = [group for group in groups if held_out[group].any() and not held_out[group].all()]
    return {
        "prompts": trace.num_prompts,
        "tokens": trace.num_tokens,
        "splits": {
            name: {"prompts": int((of_side == name).sum()), "tokens": int(lengths[of_side == name].sum())}
            for name in (*SPLITS, EXCLUDED)
        },
        "contamination": {
            "distinct_prompts": len(set(marks)),
            "exact_duplicates": len(marks) - len(set(marks)),
            "groups": len(groups),
            "prompts_in_shared_groups": sum(len(group) for group in groups if len(group) > 1),
            "largest_group": max(len(group) for group in groups),
            "in_domain_prompts_identical_to_held_out": sum(mark in held_out_marks for mark in in_domain_marks),
            "in_domain_prompts_near_held_out": sum(int((~held_out[group]).sum()) for group in mixed),
        },
    }
