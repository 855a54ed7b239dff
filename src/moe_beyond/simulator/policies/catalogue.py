"""All policies by name, each with what makes it from the training split: the only prompts that it may learn from.

Policies that read one predictor's answer (`Anticipate`, `Prefetch`) are made beside it and are not listed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from moe_beyond.errors import InputError
from moe_beyond.simulator.bounds.belady import Belady, BeladyForced
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.policies.changed_models import Lexi, Mc, Mote, SeerMoe
from moe_beyond.simulator.policies.engines import PinnedLru, Swap, WarmLru, require_number
from moe_beyond.simulator.policies.fewer_experts import CachePrior, DropCold, MoBile
from moe_beyond.simulator.policies.fine_moe import FineMoe
from moe_beyond.simulator.policies.fitted_split import LayerLruFitted
from moe_beyond.simulator.policies.hobbit import Hobbit
from moe_beyond.simulator.policies.learned_eviction import LearnedEviction
from moe_beyond.simulator.policies.moe_infinity import MoeInfinity, MoeInfinityOneCluster
from moe_beyond.simulator.policies.next_layer import Fate, MixtralOffloading, NextLayerMap
from moe_beyond.simulator.policies.on_demand import (
    Fifo,
    LayerLfu,
    LayerLru,
    LeastStale,
    Lfru,
    Lfu,
    LfuResident,
    Lru,
    Random,
)
from moe_beyond.simulator.policies.pre_gated import PreGated, PreGatedLru
from moe_beyond.simulator.policies.prompt_sets import EMoe, PreMoe
from moe_beyond.simulator.policies.settings import PolicySettings
from moe_beyond.simulator.policies.static import StaticPopularity
from moe_beyond.simulator.policies.substitution import Substitution
from moe_beyond.traces.schema import Trace

Factory = Callable[[Trace, PolicySettings], Policy]
"""Makes a policy from the training split and the settings.

Raises:
    InputError: The policy learns from router weights, and the training split has none.
"""


def known() -> Mapping[str, Factory]:
    """What makes each policy, by the name that its results bear: on demand, fetching ahead, lossy, bounds."""
    return {
        Lru.name: lambda _training, _settings: Lru(),
        LayerLru.name: lambda _training, _settings: LayerLru(),
        LayerLruFitted.name: lambda training, _settings: LayerLruFitted.fit(training),
        Lfu.name: lambda _training, _settings: Lfu(),
        LfuResident.name: lambda _training, _settings: LfuResident(),
        LayerLfu.name: lambda _training, _settings: LayerLfu(),
        Lfru.name: lambda _training, _settings: Lfru(),
        LeastStale.name: lambda _training, _settings: LeastStale(),
        Fifo.name: lambda _training, _settings: Fifo(),
        Random.name: lambda _training, settings: Random(settings.seed or 0),
        StaticPopularity.name: lambda training, _settings: StaticPopularity.fit(training),
        LearnedEviction.name: lambda training, settings: LearnedEviction.fit(training, settings.seed or 0),
        EMoe.name: lambda training, _settings: EMoe.fit(training),
        PreMoe.name: lambda training, settings: PreMoe.fit(training, settings.seed or 0),
        MoeInfinity.name: lambda training, settings: MoeInfinity.fit(training, settings.matrices),
        MoeInfinityOneCluster.name: lambda training, _settings: MoeInfinityOneCluster.fit(training),
        FineMoe.name: lambda training, settings: FineMoe.fit(training, settings.maps),
        MixtralOffloading.name: lambda training, settings: MixtralOffloading(
            NextLayerMap.fit(training), settings.speculative_loads
        ),
        Fate.name: lambda training, _settings: Fate(NextLayerMap.fit(training)),
        PreGated.name: lambda _training, _settings: PreGated(),
        PreGatedLru.name: lambda _training, _settings: PreGatedLru(),
        Hobbit.name: lambda training, _settings: Hobbit(NextLayerMap.fit(training)),
        MoBile.name: lambda training, _settings: MoBile.fit(training),
        Substitution.name: lambda training, _settings: Substitution.fit(training),
        CachePrior.name: lambda _training, _settings: CachePrior(),
        DropCold.name: lambda _training, _settings: DropCold(),
        SeerMoe.name: lambda training, _settings: SeerMoe.fit(training),
        Lexi.name: lambda training, _settings: Lexi.fit(training),
        Mc.name: lambda training, _settings: Mc.fit(training),
        Mote.name: lambda _training, _settings: Mote(),
        Belady.name: lambda _training, _settings: Belady(),
        BeladyForced.name: lambda _training, _settings: BeladyForced(),
    }


NUMBERED: Mapping[str, Callable[[Trace, int], Policy]] = {
    "swap": lambda _training, every: Swap(every),
    "pinned_lru": PinnedLru.fit,
    "warm_lru": lambda _training, width: WarmLru(width),
}
"""Policies whose names end in a number, such as `swap_8`: steps from round to round, experts that are pinned,
experts of each layer that are fetched when a prompt's prefill has ended."""
_WITH_NUMBER = re.compile(rf"({'|'.join(NUMBERED)})_(\d+)")


def is_known(name: str) -> bool:
    """Whether `build` makes a policy of this name."""
    return name in known() or _WITH_NUMBER.fullmatch(name) is not None


def all_names() -> str:
    """For messages."""
    return ", ".join([*sorted(known()), *(f"{name}_NUMBER" for name in NUMBERED)])


def build(name: str, training: Trace, settings: PolicySettings) -> Policy:
    """Make the policy of a name.

    Raises:
        InputError: Nothing bears the name, or the training split lacks what the policy learns from.
    """
    if numbered := _WITH_NUMBER.fullmatch(name):
        return NUMBERED[numbered[1]](training, require_number(name, int(numbered[2])))
    if not is_known(name):
        raise InputError(f"policy {name!r} is not known; choose one of {all_names()}")
    return known()[name](training, settings)
