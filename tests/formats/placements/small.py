"""Small placements: the toy's, and some of chance."""

import numpy as np

from moe_beyond.formats.counts import ExpertCounts
from moe_beyond.formats.placements import FORMATS, Options, Placement

COUNTS = np.array([[2, 3, 2, 1], [2, 2, 2, 2], [2, 2, 2, 2]])
FLAT, DENSE = (0, 1, 2), (1, 2, 3)
"""MoE layers of the toy: in every layer, or after a dense one."""
OPTIONS = Options(engine="olmoe")
FIRST_LAYERS = ("strata-strp", "mbolt-perms", "0xbakeer-coverage")
"""Formats that need experts in every layer."""


def counts_of(counts_LE, layers, sizes=None, top_k=2):
    """Counts of these layers."""
    return ExpertCounts("toy", layers, np.asarray(counts_LE), "toy", top_k, sizes)


def toy(name, layers=None, **options):
    """The toy's placement for a format: two slots of each layer."""
    layers = layers or (FLAT if name in FIRST_LAYERS else DENSE)
    return Placement.of(counts_of(COUNTS, layers), FORMATS[name].split, slots=2, **options)


def placement_of_chance(rng, name):
    """Layers, experts, counts, sizes and budget drawn; dense layers where the format allows them."""
    layers, experts = int(rng.integers(2, 5)), int(rng.integers(2, 9))
    numbers = np.sort(rng.choice(8, layers, replace=False)) if name not in FIRST_LAYERS else np.arange(layers)
    counts = rng.integers(0, rng.choice([2, 5, 10**9]), (layers, experts))
    counts[:, rng.integers(experts)] += 1
    sizes = tuple(rng.integers(1, 4, layers).tolist())
    slots = int(rng.integers(1, experts))
    model_layers = int(numbers[-1]) + 1 + (0 if name in FIRST_LAYERS else int(rng.integers(0, 3)))
    top_k = int(rng.integers(1, experts))
    made = counts_of(counts, tuple(numbers.tolist()), sizes, top_k)
    # of whole layers less than two holds nothing, and all of them need no flag
    whole = FORMATS[name].split in ("layers", "last layers")
    budget = sum(sizes) * experts - 1 if whole else sum(sizes) * slots
    return Placement.of(made, FORMATS[name].split, budget_bytes=budget, model_layers=model_layers)
