"""The published policies that change what a model computes, fitted for a running model: its own experts and routers.

Where a publication measures the model itself, so does the fit here; the stand-ins of the replay, which has a trace
alone, are left to the replay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_beyond.live.likeness import measured_substitution
from moe_beyond.live.perturbation import fit_lexi
from moe_beyond.live.quantiser import INT4, WHOLE
from moe_beyond.live.session import Case
from moe_beyond.live.texts import whole_texts
from moe_beyond.simulator.policies.catalogue import build
from moe_beyond.simulator.policies.changed_models import Lexi
from moe_beyond.simulator.policies.hobbit import Hobbit
from moe_beyond.simulator.policies.on_demand import LayerLru
from moe_beyond.simulator.policies.substitution import Substitution

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from moe_beyond.live.store import ExpertStore
    from moe_beyond.simulator.policies.settings import PolicySettings
    from moe_beyond.traces.schema import Trace

LOSSY = (
    "hobbit",
    "mobile",
    "substitution",
    "cache_prior",
    "drop_cold",
    "seer_moe",
    "lexi",
    "mc",
    "mote",
    "pre_moe",
    "pre_gated",
    "pre_gated_lru",
)
_READ_TOKENS = 256


def lossy_case(
    name: str, model: PreTrainedModel, store: ExpertStore, training: Trace, *, settings: PolicySettings, seed: int
) -> Case:
    """One of LOSSY, or `hobbit_int4`: HOBBIT with 4 bits at low precision, where it takes a quarter of the bytes.

    Args:
        name: Its name.
        model: Its experts in memory.
        store: Its experts.
        training: Trace of the training split, with token ids and weights.
        settings: Of published policies.
        seed: Of random inputs.

    Raises:
        InputError: The trace lacks what the policy learns from, or the model cannot be measured.
    """
    if name == Substitution.name:
        return Case(measured_substitution(model, whole_texts(training), _READ_TOKENS))
    if name == Lexi.name:
        return Case(fit_lexi(model, store, seed=seed))
    if name == f"{Hobbit.name}_int4":
        return Case(build(Hobbit.name, training, settings), levels_V=(WHOLE, INT4), name=name)
    return Case(build(name, training, settings))


def all_cases(
    model: PreTrainedModel, store: ExpertStore, training: Trace, *, settings: PolicySettings, seed: int
) -> list[Case]:
    """A lossless policy to compare with, and all lossy ones."""
    names = (*LOSSY[:1], f"{Hobbit.name}_int4", *LOSSY[1:])
    return [
        Case(LayerLru()),
        *(lossy_case(name, model, store, training, settings=settings, seed=seed) for name in names),
    ]
