"""A thousand placements of chance go through every format: what is read back is what counts and budget say."""

import numpy as np
import pytest

from moe_beyond.formats.placements import FORMATS, encode
from tests.formats.placements.small import OPTIONS, placement_of_chance


def by_hand(placement):
    """What stays, as loops say it: experts of each layer, all of them in order, and pairs of the model in order."""
    counts, layers = placement.counts.counts_LE.tolist(), range(placement.counts.num_layers)
    order = [sorted(range(len(row)), key=lambda e, row=row: (-row[e], e)) for row in counts]
    pairs = sorted((-row[e], layer, e) for layer, row in enumerate(counts) for e in range(len(row)))
    return order, [(layer, e) for _, layer, e in pairs], dict(zip(placement.counts.layer_numbers, layers, strict=True))


def kept_by_hand(placement, name):
    """Pairs that stay, from the budget."""
    order, pairs, _ = by_hand(placement)
    sizes, budget, split = placement.counts.expert_bytes, placement.budget_bytes, FORMATS[name].split
    layers, experts = len(sizes), len(order[0])
    kept, used = set(), 0
    if split == "model":
        candidates = [[pair] for pair in pairs]
    elif split == "layer":
        candidates = [[(layer, order[layer][rank]) for layer in range(layers)] for rank in range(experts)]
    else:
        last = sorted(range(layers), key=lambda layer: (split == "layers" and sizes[layer], -layer))
        candidates = [[(layer, expert) for expert in range(experts)] for layer in last]
    for group in candidates:
        used += sum(sizes[layer] for layer, _ in group)
        if used > budget:
            break
        kept |= set(group)
    return kept


def expected(placement, name, kept):
    order, pairs, index = by_hand(placement)
    counts = placement.counts.counts_LE.tolist()
    of_layer = [[e for e in order[layer] if (layer, e) in kept] for layer in range(len(order))]
    rows = [counts[index[n]] if n in index else [0] * len(order[0]) for n in range(placement.model_layers)]
    moved = [number for number, layer in index.items() if not of_layer[layer]]
    uses = [sum(column) for column in zip(*counts, strict=True)]
    ranked = [pair for pair in pairs if pair in kept]
    return {
        "strata-strp": lambda found: (found["pairs"], found["slots"]) == (ranked, len(kept)),
        "strata-json": lambda found: found == order,
        "thecodacus-profile": lambda found: found == of_layer,
        "fitz-pins": lambda found: (
            found == [[e for e in order[index[n]] if row[e]] if n in index else [] for n, row in enumerate(rows)]
        ),
        "mbolt-perms": lambda found: (
            [layer["heat_perm"] for layer in found["layers"]] == order
            and [layer["heat"] for layer in found["layers"]] == counts
        ),
        "mesh-llm-ranking": lambda found: (
            [row[0] for row in found] == sorted(range(len(uses)), key=lambda e: (-uses[e], e))
            and all(row[3] == uses[row[0]] for row in found)
        ),
        "llamacpp-ot": lambda found: found == moved,
        "llamacpp-n-cpu-moe": lambda found: found == max(moved) + 1,
        "cache-sizes": lambda found: found["Strata"] == f"--expert-cache {len(kept)}",
        "sglang-map": lambda found: all(
            sorted(found[n]) == sorted([*range(len(uses)), *of_layer[layer]]) for n, layer in index.items()
        ),
    }.get(name, lambda found: found == rows)


@pytest.mark.parametrize("name", FORMATS)
def test_a_thousand_placements_survive_writing_and_strict_reading(name, tmp_path):
    rng, chosen = np.random.default_rng(7), FORMATS[name]
    for number in range(1000):
        placement = placement_of_chance(rng, name)
        encoded = encode(name, placement, OPTIONS)
        found = chosen.parse(encoded.data, placement.model, OPTIONS)
        assert found == encoded.said
        kept = kept_by_hand(placement, name)
        assert {pair for pair, stays in np.ndenumerate(placement.kept_LE) if stays} == kept
        assert expected(placement, name, kept)(found), (number, placement)
    encoded.save(tmp_path / "file")
    assert (tmp_path / "file").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
