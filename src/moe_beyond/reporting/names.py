"""How the tables' identifiers are written, coloured and dashed: one look for one thing, on the whole page."""

from __future__ import annotations

from dataclasses import dataclass

BASELINE_PREDICTORS = ("token_unigram", "previous_token", "popularity")
"""Predictors that count instead of learning."""

_LABELS = {
    "lru": "LRU",
    "layer_lru": "LRU per layer",
    "lfu": "LFU",
    "layer_lfu": "LFU per layer",
    "lfru": "LFRU",
    "fifo": "FIFO",
    "moe_infinity": "MoE-Infinity",
    "moe_beyond": "MoE-Beyond",
    "finemoe": "FineMoE",
    "hobbit": "HOBBIT",
    "mobile": "MoBiLE",
    "emoe": "eMoE",
    "premoe": "PreMoe",
    "flashmoe": "FlashMoE",
    "static_popularity": "Static popularity",
    "belady": "Belady (demand bound)",
    "belady_forced": "Belady, forced (demand bound)",
    "phone_ufs": "Phone, UFS flash",
    "laptop_nvme": "Laptop, NVMe",
    "gpu_pcie3": "GPU, PCIe 3",
    "gpu_pcie4": "GPU, PCIe 4",
    "gpu_pcie5": "GPU, PCIe 5",
    "unified_memory": "Unified memory",
    "test_in_domain": "Same domain",
    "test_out_of_domain": "Another domain",
}

# colour tokens are resolved by the theme, so that one chart serves light and dark; blue is kept for ours
_FREE_COLOURS = ("@wine", "@teal", "@sky", "@green", "@purple", "@orange", "@vermilion")
_DASHES = ([1, 0], [8, 3], [4, 2], [2, 2], [10, 3, 2, 3], [6, 2, 2, 2])
_FIXED = {
    "lru": ("@vermilion", [1, 0]),
    "lfu": ("@green", [8, 3]),
    "popularity": ("@purple", [4, 2]),
    "token_unigram": ("@orange", [10, 3, 2, 3]),
    "previous_token": ("@sky", [6, 2, 2, 2]),
}
_BOUND_DASHES = ([2, 3], [1, 4], [5, 4])


@dataclass(frozen=True)
class Look:
    """Label, colour token and dash of one line."""

    label: str
    colour: str
    dash: list[int]


def label(name: str) -> str:
    """What a person reads for an identifier."""
    if name in _LABELS:
        return _LABELS[name]
    before, prefetch, eviction = name.partition("_prefetch_")
    if prefetch:
        return f"{label(before)} prefetch + {label(eviction)}"
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def is_bound(policy: str) -> bool:
    """True for a replay that knows the future and so cannot be built."""
    return policy.startswith(("belady", "clairvoyant", "oracle"))


def is_learned(name: str) -> bool:
    """True for the trained predictor, and for a policy that prefetches by it."""
    return ("predictor" in name or name.startswith("moe_beyond")) and baseline_in(name) is None


def baseline_in(name: str) -> str | None:
    """The baseline predictor that a predictor's or policy's name contains."""
    return next((baseline for baseline in BASELINE_PREDICTORS if baseline in name), None)


def looks(names: list[str]) -> dict[str, Look]:
    """A look for each name: known ones keep theirs, ours is blue, bounds are ink, the rest take what is left."""
    chosen: dict[str, tuple[str, list[int]]] = {}
    bounds = 0
    for name in names:
        if is_bound(name):
            chosen[name] = ("@ink", _BOUND_DASHES[bounds % len(_BOUND_DASHES)])
            bounds += 1
        elif is_learned(name) and ("@blue", [1, 0]) not in chosen.values():
            chosen[name] = ("@blue", [1, 0])
        elif (key := name if name in _FIXED else baseline_in(name)) in _FIXED and _FIXED[key] not in chosen.values():
            chosen[name] = _FIXED[key]
    taken = {colour for colour, _ in chosen.values()}
    left = [colour for colour in _FREE_COLOURS if colour not in taken]
    for name in names:
        if name not in chosen:
            # past the palette, lines are grey and told apart by dash, tooltip and table
            colour = left.pop(0) if left else "@grey"
            chosen[name] = (colour, _DASHES[len(chosen) % len(_DASHES)])
    return {name: Look(label(name), *chosen[name]) for name in names}


def ordered(names: list[str]) -> list[str]:
    """Learned first, then the others as they came, bounds last."""
    return sorted(dict.fromkeys(names), key=lambda name: (is_bound(name), not is_learned(name)))
