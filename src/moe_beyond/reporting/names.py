"""How the tables' identifiers are written, coloured and dashed: one look for one thing, on the whole page."""

from __future__ import annotations

from dataclasses import dataclass

BASELINE_PREDICTORS = ("token_unigram", "previous_token", "popularity")
"""Predictors that count instead of learning."""

_BY_PREDICTION = "anticipate"  # the eviction that goes by the predicted next use
_LAYER_STEP = "_layer"  # prefetch by the layer step too, not by the token step alone

_PUBLISHED = {
    "moe_infinity": "MoE-Infinity",
    "moe_infinity_one_cluster": "MoE-Infinity, one cluster",
    "one-cluster_MoE-Infinity": "MoE-Infinity, one cluster",
    "moe_beyond": "MoE-Beyond",
    "fine_moe": "FineMoE",
    "hobbit": "HOBBIT",
    "mobile": "MoBiLE",
    "emoe": "eMoE",
    "pre_moe": "PreMoe",
    "pre_gated": "Pre-gated MoE",
    "mixtral_offloading": "Mixtral-offloading",
    "fate": "Fate",
    "flash_moe": "FlashMoE",
    "learned_eviction": "Learned eviction (FlashMoE)",
    "least_stale": "Least-Stale",
    "cache_prior": "Cache-prior routing",
    "drop_cold": "Drop-cold",
    "substitution": "Substitution (SMoE)",
    "layer_lfu": "LFU per layer",
    "lfru": "LFRU",
    "seer_moe": "SEER-MoE",
    "lexi": "LExI",
    "mc": "MC, fewer bits",
    "mote": "MoTE",
}
"""Policies and predictors after published systems."""

_LABELS = {
    **_PUBLISHED,
    "lru": "LRU",
    "layer_lru": "LRU per layer",
    "layer_lru_fitted": "LRU per layer, fitted split",
    "lfu": "LFU",
    "lfu_resident": "LFU, forgetful",
    "fifo": "FIFO",
    "arc": "ARC",
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

# colour tokens are resolved by the theme, so that one chart serves light and dark; what a predictor drives has the
# predictor's colour, and the dash tells the members of such a family apart
_LEARNED, _BOUND = "learned", "bound"
_FAMILIES = {
    _LEARNED: ("@blue", ([1, 0], [8, 3], [2, 2], [10, 3, 2, 3])),
    _BOUND: ("@ink", ([2, 3], [1, 4], [5, 4])),
    "token_unigram": ("@orange", ([10, 3, 2, 3], [5, 3], [2, 2], [1, 0])),
    "previous_token": ("@sky", ([6, 2, 2, 2], [5, 3], [2, 2], [1, 0])),
    "popularity": ("@purple", ([4, 2], [10, 3, 2, 3], [2, 2], [1, 0])),
    "lru": ("@vermilion", ([1, 0],)),
    "lfu": ("@green", ([8, 3],)),
}
# every other policy of the catalogue has one look on the whole page, whatever stands beside it, the likeliest first
_CATALOGUE = (
    *("layer_lru", "moe_infinity", "least_stale", "mixtral_offloading", "fine_moe", "layer_lru_fitted", "fate"),
    *("lfru", "pre_gated", "learned_eviction", "hobbit", "mobile", "cache_prior", "drop_cold", "substitution"),
    *("emoe", "pre_moe", "seer_moe", "lexi", "mc", "mote", "moe_infinity_one_cluster", "layer_lfu", "lfu_resident"),
    *("fifo", "random", "arc"),
)
# round ends fill gaps of less than four pixels
_CATALOGUE_DASHES = ([7, 5], [2, 5], [10, 5, 2, 5], [14, 6], [5, 8])
_FREE_COLOURS = ("@wine", "@teal", "@sky", "@green", "@purple", "@orange", "@vermilion")
_FREE_DASHES = ([1, 0], [8, 3], [4, 2], [2, 2], [10, 3, 2, 3], [6, 2, 2, 2])


_FIXED = dict(
    zip(
        _CATALOGUE,
        [
            *((colour, [1, 0]) for colour in ("@wine", "@teal", "@green")),
            *((colour, dash) for dash in _CATALOGUE_DASHES for colour in _FREE_COLOURS),
        ],
        strict=False,
    )
)


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
        step = " layer-step" if before.endswith(_LAYER_STEP) else ""
        rest = "eviction" if eviction == _BY_PREDICTION else label(eviction)
        return f"{label(before.removesuffix(_LAYER_STEP))}{step} prefetch + {rest}"
    if name.endswith(f"_{_BY_PREDICTION}"):
        return f"{label(name.removesuffix(f'_{_BY_PREDICTION}'))} eviction"
    asked, ahead, layers = name.partition("_ahead_")
    if ahead:
        return f"{label(asked)}, {layers} layer{'' if layers == '1' else 's'} ahead"
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def is_published(name: str) -> bool:
    """True for a policy that a published system uses, as its authors describe it."""
    return name in _PUBLISHED


def needs_another_router(name: str) -> bool:
    """True for a policy that works only with a model trained to choose experts a layer earlier."""
    return name == "pre_gated"


def asks_by_layer(policy: str) -> bool:
    """True for a policy that the predictor's layer step drives."""
    return is_learned(policy) and "_layer_" in policy


def is_bound(policy: str) -> bool:
    """True for a replay that knows the future and so cannot be built."""
    return policy.startswith(("belady", "clairvoyant", "oracle"))


def sees_the_future(name: str) -> bool:
    """True for a predictor that is not causal: it sees later tokens of the prompt, so it cannot run in decoding."""
    return "leaky" in name


def is_learned(name: str) -> bool:
    """True for the trained predictor, and for a policy that prefetches by it."""
    return ("predictor" in name or name.startswith("moe_beyond")) and baseline_in(name) is None


def baseline_in(name: str) -> str | None:
    """The baseline predictor that a predictor's or policy's name contains."""
    return next((baseline for baseline in BASELINE_PREDICTORS if baseline in name), None)


def _family(name: str) -> str | None:
    if is_bound(name):
        return _BOUND
    if is_learned(name):
        return _LEARNED
    return baseline_in(name) or (name if name in _FAMILIES else None)


def looks(names: list[str]) -> dict[str, Look]:
    """A look for each name: families keep their colour, the rest take what is left, and past the palette are grey."""
    chosen: dict[str, tuple[str, list[int]]] = {}
    members: dict[str, int] = {}
    for name in names:
        family = _family(name)
        if family is not None:
            colour, dashes = _FAMILIES[family]
            chosen[name] = (colour, dashes[members.get(family, 0) % len(dashes)])
            members[family] = members.get(family, 0) + 1
        elif name in _FIXED:
            chosen[name] = _FIXED[name]
    taken = {colour for colour, _ in chosen.values()}
    left = [colour for colour in _FREE_COLOURS if colour not in taken]
    for place, name in enumerate(name for name in names if name not in chosen):
        chosen[name] = (left.pop(0) if left else "@grey", _FREE_DASHES[place % len(_FREE_DASHES)])
    return {name: Look(label(name), *chosen[name]) for name in names}


def legend(names: list[str]) -> tuple[Look, ...]:
    """The looks of the lines of a chart, in order."""
    return tuple(looks(names).values())


def ordered(names: list[str]) -> list[str]:
    """Learned first, then the others as they came, bounds last."""
    return sorted(dict.fromkeys(names), key=lambda name: (is_bound(name), not is_learned(name)))
