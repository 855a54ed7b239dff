"""ARC as a rank against the textbook."""

from collections import OrderedDict

import numpy as np
import pytest
from typing_extensions import override

from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.policies.arc import PARTS, adaptive_replacement
from tests.simulator.policies.literal import literal, misses


class Arc(Policy):
    name = "arc"
    per_layer = True
    rank = staticmethod(adaptive_replacement)

    @override
    def scores_SM(self, events):
        return np.zeros((1, 2 * events.metadata.num_model_experts), np.float32)


class Textbook:
    """Megiddo and Modha, figure 4, word by word; the border in the same parts of an expert."""

    def __init__(self, capacity):
        self.c, self.p = capacity, 0.0
        self.t1, self.t2, self.b1, self.b2 = (OrderedDict() for _ in range(4))

    def replace(self, page):
        if self.t1 and (len(self.t1) > self.p or (page in self.b2 and len(self.t1) == self.p)):
            self.b1[self.t1.popitem(last=False)[0]] = None
        else:
            self.b2[self.t2.popitem(last=False)[0]] = None

    def miss(self, page):
        for seen in (self.t1, self.t2):
            if page in seen:
                del seen[page]
                self.t2[page] = None
                return 0
        for ghosts, others, sign in ((self.b1, self.b2, 1), (self.b2, self.b1, -1)):
            if page in ghosts:
                step = max(1, len(others) / len(ghosts))
                self.p = min(self.c, max(0, self.p + sign * np.round(step * PARTS) / PARTS))
                self.replace(page)
                del ghosts[page]
                self.t2[page] = None
                return 1
        self.new(page)
        return 1

    def new(self, page):
        first, total = len(self.t1) + len(self.b1), sum(map(len, (self.t1, self.t2, self.b1, self.b2)))
        if first == self.c:
            if len(self.t1) < self.c:
                self.b1.popitem(last=False)
                self.replace(page)
            else:
                self.t1.popitem(last=False)
        elif total >= self.c:
            if total == 2 * self.c:
                self.b2.popitem(last=False)
            self.replace(page)
        self.t1[page] = None


@pytest.mark.parametrize("capacity", [2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(8))
def test_one_expert_at_a_time_it_is_the_textbook_s(capacity, seed):
    draw = np.random.default_rng(seed)
    popular, scan = draw.zipf(1.3, 600) % 12, np.arange(600) % 12
    pages = np.where(draw.random(600) < 0.7, popular, scan).astype(np.uint8)
    book = Textbook(capacity)
    assert misses(Arc(), literal(pages.tolist(), num_experts=12), capacity) == [book.miss(page) for page in pages]
