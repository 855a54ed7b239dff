"""The link: demand before prefetches, one load after another, errors where they are waited for."""

import itertools
import threading
import time

import pytest

from moe_beyond.errors import InputError
from moe_beyond.live.link import Link, Load


class SlowReads:
    """A tier that takes 2 ms for each page, and remembers what it read."""

    def __init__(self, pages=10, broken=()):
        self.pages, self.broken = pages, broken
        self.finished, self.pieces = [], []
        self.begun = threading.Event()

    def size(self, expert, precision):
        return 4096 * self.pages

    def read(self, expert, precision, slot, start, end):
        self.pieces.append((expert, start, end))
        self.begun.set()
        time.sleep((end - start) / 4096 * 0.002)

    def finish(self, expert, precision, slot):
        if expert in self.broken:
            raise InputError(f"expert {expert} is damaged")
        self.finished.append(expert)


def link_over(tier, wanted, done, **options):
    waiting = list(wanted)
    return Link(
        tier,
        lambda: waiting.pop(0) if waiting else None,
        lambda load, loaded: done.append((load.expert, loaded)),
        **options,
    )


def test_demand_interrupts_a_prefetch_that_goes_on_afterwards():
    tier, done = SlowReads(pages=20), []
    # pieces of 4 pages
    link = link_over(tier, [Load(1, 0)], done, gb_per_s=0.0164)
    tier.begun.wait(5)
    with link.changed:
        link.demand([Load(7, 1), Load(8, 2)])
    link.wait()
    assert tier.finished == [7, 8]
    link.wait(1)
    assert tier.finished == [7, 8, 1]
    assert done == [(1, True)]
    assert link.bytes_read == 3 * 20 * 4096
    # each page of each expert was read once
    for expert in (1, 7, 8):
        pieces = sorted((start, end) for number, start, end in tier.pieces if number == expert)
        assert pieces[0][0] == 0
        assert pieces[-1][1] == 20 * 4096
        assert all(one[1] == other[0] for one, other in itertools.pairwise(pieces))
    link.close()


def test_a_prefetch_that_is_given_up_is_said_to_be():
    tier, done = SlowReads(pages=40), []
    link = link_over(tier, [Load(1, 0)], done, gb_per_s=0.0164)
    tier.begun.wait(5)
    with link.changed:
        link.cancel()
        link.changed.wait_for(lambda: done, 5)
    assert done == [(1, False)]
    assert tier.finished == []
    link.close()


def test_lanes_read_an_expert_together():
    tier = SlowReads(pages=12)
    link = link_over(tier, [], [], lanes=3)
    began = time.perf_counter()
    with link.changed:
        link.demand([Load(1, 0)])
    link.wait()
    assert time.perf_counter() - began < 12 * 0.002
    assert sorted(tier.pieces) == [(1, 0, 16384), (1, 16384, 32768), (1, 32768, 49152)]
    link.close()


def test_an_error_of_the_tier_is_raised_where_it_is_waited_for():
    link = link_over(SlowReads(broken=[3]), [], [])
    with link.changed:
        link.demand([Load(2, 0), Load(3, 1)])
    with pytest.raises(InputError, match="expert 3 is damaged"):
        link.wait()
    link.close()
