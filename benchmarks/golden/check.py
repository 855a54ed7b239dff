"""A figure of ours beside the published one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """A figure of ours beside the published one.

    Attributes:
        name: One word.
        value: Ours.
        expected: The published one, or what ours may not exceed.
        tolerance: How far off ours may be.
        relation: Whether ours is to be equal, or at most as large.
        shortfall: Why this one is known not to agree; empty for those that must.
    """

    name: str
    value: float
    expected: float
    tolerance: float = 0.0
    relation: Literal["equal", "at most"] = "equal"
    shortfall: str = ""

    @property
    def agrees(self) -> bool:
        """Whether ours is what it ought to be."""
        if self.relation == "at most":
            return bool(self.value <= self.expected)
        # half a unit of the last published digit is no disagreement, nor is the float that stands for it
        return bool(abs(self.value - self.expected) <= self.tolerance + 1e-9)

    @property
    def fails(self) -> bool:
        """Whether something is wrong: a figure that must agree does not, or one does that was said not to."""
        return self.agrees == bool(self.shortfall)

    def __str__(self) -> str:
        """`NAME VALUE EXPECTED`."""
        sign = "<=" if self.relation == "at most" else ""
        margin = f"+-{self.tolerance:g}" if self.tolerance else ""
        verdict = f" known shortfall: {self.shortfall}" if self.shortfall else ""
        return f"{self.name} {self.value:.10g} {sign}{self.expected:.10g}{margin}{verdict}"
