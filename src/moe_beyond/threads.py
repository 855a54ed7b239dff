"""How many threads torch computes with.

Small models gain nothing from a second thread, and lose much when another process wants the core: one thread that waits
for its turn makes all others spin. One thread also makes sums, and so results, independent of the number of cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Compute with `number` threads inside the `with`; None leaves torch's choice."""
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)
