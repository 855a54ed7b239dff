"""What is replayed, how ours is used, and what is refused."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from pydantic import ValidationError

from moe_beyond.errors import InputError
from moe_beyond.predictor.next_gate import NextGate, SharedAdapter
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies.on_demand import LayerLru, Lru
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.simulator.study.study import Charged, replay_splits
from moe_beyond.simulator.study.tables import all_tables
from tests.hidden_traces import hidden_trace
from tests.simulator.strategies import make_trace
from tests.simulator.study.cases import HEADLINE, PUBLISHED, SETTINGS, PartlyRight, TokenStep, drawn, partly_right_TLE

OURS = [f"ours_{use}" for use in ("prefetch_anticipate", "prefetch_lru", "layer_prefetch_anticipate")]
OURS += ["ours_layer_prefetch_lru", "ours_anticipate"]
RIVALS = ["rival_prefetch_anticipate", "rival_prefetch_lru", "rival_anticipate"]
SMALL = SETTINGS.model_copy(update={"capacities": (0.5,), "timed_capacities": None})


def replayed(trace, settings, predictors=(), *, training=None, validation=None):
    (split,) = replay_splits({"test": trace}, training or trace, validation or trace, predictors, settings)
    return split


def test_every_policy_is_replayed_at_every_capacity_and_timed_where_wanted(replays):
    for split in replays:
        assert [one.facts.policy for one in split.policies] == [*PUBLISHED[:-1], *OURS, *RIVALS, "belady"]
        for policy in split.policies:
            assert [replay.capacity_experts for replay in policy.replays] == [4, 12, 24]
            assert [(one.device.name, one.replay.capacity_experts) for one in policy.timed] == split.places
        assert split.places == [(name, slots) for name in SETTINGS.devices for slots in (12, 24)]


def test_facts_say_what_kind_of_policy_it_is(replays):
    facts = replays[0].facts
    named = {
        "bound": {"belady"},
        "lossy": {"drop_cold", "pre_gated"},
        "prefetches": {"pre_gated", *OURS[:4], *RIVALS[:2]},
        "ahead_of_layers": {*OURS[2:4]},
    }
    for fact, expected in named.items():
        assert {name for name, one in facts.items() if getattr(one, fact)} == expected
    drives = {"ours": OURS, "rival": RIVALS, None: PUBLISHED}
    for predictor, policies in drives.items():
        assert {name for name, one in facts.items() if one.predictor == predictor} == set(policies)


@dataclass
class TwoFaced(PartlyRight):
    """Its token step is right about validation prompts alone, its layer step about all others."""

    def probabilities_TLE(self, trace):
        return partly_right_TLE(trace, float(trace.domains[0] == "validation"))

    def layer_probabilities_HTLE(self, trace):
        return np.stack([partly_right_TLE(trace, float(trace.domains[0] != "validation"))] * self.horizon)


def test_how_ours_is_used_is_chosen_on_validation_alone():
    settings = SMALL.model_copy(update={"policies": ("lru",), "devices": ("laptop_nvme",)})
    rest = (settings, [Charged(TwoFaced(1.0), 0.01, 0.001)])
    split = replayed(drawn(1), *rest, training=drawn(4), validation=drawn(3, "validation"))
    by_token_step = ("ours_prefetch_anticipate", "ours_prefetch_lru")
    assert split.chosen[HEADLINE] in by_token_step
    table = all_tables([split], 7)["on_device"]
    assert table.filter(table["ours"])["policy"].to_list() == [split.chosen[HEADLINE]]
    # the test prompts themselves would have chosen otherwise
    assert table.filter(table["predictor"] == "ours").sort("ms_per_token")["policy"][0] not in by_token_step
    # and as validation chooses, so it is whatever is tested
    other = replayed(drawn(2), *rest, training=drawn(4), validation=drawn(3, "validation"))
    assert other.chosen == split.chosen


def test_the_best_without_the_predictor_is_neither_ours_nor_a_bound_nor_lossy():
    """Ours predicts everything, Belady too, and dropping experts is faster still: none of them is the rival."""
    predictors = [Charged(PartlyRight(1.0), 0.0001, 0.0001)]
    split = replayed(drawn(1), SMALL, predictors, validation=drawn(3), training=drawn(4))
    for place in split.places:
        timed = split.timed_at(place)
        fastest = sorted(timed, key=lambda name: timed[name].ms_per_token)
        allowed = [name for name in fastest if name not in (*OURS, "belady", "drop_cold", "pre_gated")]
        assert fastest[0] != allowed[0]
        assert split.best_without_predictor(place).replay.policy == allowed[0]
        on_demand = [name for name in fastest if not split.facts[name].prefetches and split.facts[name].can_win]
        assert split.fastest(place, lambda facts: not facts.prefetches).replay.policy == on_demand[0]


def test_processes_give_the_same_tables_as_one():
    predictors, traces = [Charged(PartlyRight(0.5), 0.3, 0.05)], {"training": drawn(3), "validation": drawn(4)}
    settings = [SMALL.model_copy(update={"workers": workers}) for workers in (1, 2)]
    one, two = (all_tables([replayed(drawn(1), workers, predictors, **traces)], 7) for workers in settings)
    assert all(one[name].equals(two[name]) for name in one)


@pytest.mark.parametrize(("devices", "prefill"), [((), (2, 0)), (SETTINGS.devices, (9, 9))], ids=["devices", "tokens"])
def test_without_devices_or_decoded_tokens_nothing_is_timed_and_tables_keep_their_columns(devices, prefill, capsys):
    trace = make_trace(1, num_layers=3, num_experts=8, lengths=(9, 9), prefill=prefill)
    split = replayed(trace, SMALL.model_copy(update={"devices": devices}), [Charged(PartlyRight(0.5), 0.3, 0.05)])
    tables = all_tables([split], 7)
    assert ("simulate.prefill: token_by_token" in capsys.readouterr().err) == bool(devices)
    assert tables["unlimited_link"]["decode_hit_rate"].null_count() == bool(devices) * len(tables["unlimited_link"])
    of_a_prompt = () if devices else ("timeline", "costliest_misses")
    for name in ("on_device", "pays", "by_bandwidth", "by_width", "ablation", *of_a_prompt):
        assert tables[name].is_empty(), name
        assert len(tables[name].columns) > 5
    assert len(tables["unlimited_link"]) == len(PUBLISHED) + len(OURS)
    assert devices or split.chosen == split.bounds == {}


def test_one_prompt_has_no_intervals_but_the_same_columns():
    trace = drawn(1).select(np.arange(1))
    one, three = (
        all_tables([replayed(part, SMALL, [Charged(PartlyRight(0.5), 0.3)])], 7) for part in (trace, drawn(1))
    )
    for name in ("on_device", "unlimited_link"):
        assert one[name].schema == three[name].schema
        assert one[name]["hit_rate_low"].null_count() == len(one[name]) > 0 == three[name]["hit_rate_low"].null_count()


def test_policies_that_the_traces_do_not_allow_are_named_with_the_reason():
    trace = replace(drawn(1), weights_TLK=None)
    settings = SMALL.model_copy(update={"policies": None, "devices": ()})
    split = replayed(trace, settings)
    reasons = dict(all_tables([split], 7)["not_replayed"].select("title", "reason").iter_rows())
    assert any("router weights" in reason for reason in reasons.values())
    done = {one.facts.policy for one in split.policies if one.replays}
    assert done & {"belady", "lru", "drop_cold"} == {"belady", "lru"}
    assert {one.facts.title for one in split.policies if not one.replays} == set(reasons)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policies": ("lru", "clairvoyance")}, r"policy 'clairvoyance' is not known; choose one of .*lru"),
        ({"policies": ("drop_cold",)}, "drop_cold.*weights"),
        ({"devices": ("abacus",)}, "known are .*laptop_nvme"),
    ],
)
def test_what_cannot_be_replayed_is_refused_by_name(change, message):
    with pytest.raises(InputError, match=message):
        replayed(replace(drawn(1), weights_TLK=None), SMALL.model_copy(update=change))


def test_a_split_of_another_model_is_refused():
    with pytest.raises(InputError, match="num_experts is 6"):
        replayed(make_trace(1, num_experts=6), SETTINGS, training=make_trace(2, num_experts=5))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"capacities": (0.5, 0.1)}, "capacities must rise"),
        ({"capacities": (0.0, 0.1)}, "above 0 and at most 1"),
        ({"headline_capacity": 0.33}, "must be one of capacities"),
        ({"timed_capacities": (0.5,)}, "headline_capacity among them"),
        ({"bandwidths_gb_per_s": (4.0, 2.0)}, "bandwidths_gb_per_s must rise"),
        ({"widths": (0.0, 1.0)}, "widths must rise without repetition, from above 0"),
        ({"headline_device": "abacus"}, "headline_device must be one of devices"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        SimulateSettings(**wrong)


def test_only_the_reference_model_is_timed_at_another_size():
    assert SETTINGS.of_source("reference").timed_expert_mib == 8.25
    assert SETTINGS.of_source("import").timed_expert_mib is None


def test_overrun_reaches_every_replay_and_the_bound_allows_for_it():
    settings = SETTINGS.model_copy(update={"overrun": True, "policies": ("lru", "layer_lru", "belady_forced")})
    split = replayed(drawn(1), settings, [Charged(PartlyRight(0.5), 0.3, 0.05)])
    policy = LayerLru()
    for slots in (4, 12):
        plain, overrun = (
            replay(split.case.events, policy, policy.budget(split.metadata, slots), overrun=on).total
            for on in (False, True)
        )
        assert split.at(slots)["layer_lru"].total == overrun != plain
    for place, bound in split.bounds.items():
        for timed in split.timed_at(place).values():
            assert timed.ms_per_token >= bound.ms_per_token


@pytest.mark.parametrize("keep_warm", [True, False])
def test_with_a_batch_shared_experts_are_wanted_once(replays, keep_warm):
    lossless = tuple(name for name in PUBLISHED if name != "drop_cold")
    settings = SETTINGS.model_copy(update={"batch": 3, "keep_warm": keep_warm, "policies": lossless})
    predictors = [Charged(PartlyRight(0.5, ahead_right=0.7), 0.3, 0.05)]
    together = replayed(drawn(1), settings, predictors, training=drawn(3), validation=drawn(4))
    alone = replays[0].at(12)
    assert list(together.at(12)) == [name for name in alone if name not in ("drop_cold", *RIVALS)]
    for name, together_at in together.at(12).items():
        assert together_at.total.tokens == alone[name].total.tokens
        assert together_at.decode.accesses < alone[name].decode.accesses
        assert together_at.total.accesses == together_at.accesses_P.sum()
    for place, bound in together.bounds.items():
        timed = together.timed_at(place)
        assert min(timed[name].ms_per_token for name in timed if name != "pre_gated") >= bound.ms_per_token
    assert Lru.name in together.at(4)


def test_readers_of_hidden_states_stand_beside_the_others_where_a_split_has_some():
    training = hidden_trace(1, (40,), (0,))
    splits = {"test_in_domain": replace(hidden_trace(2), hidden=None), "test_out_of_domain": hidden_trace(3)}
    readers = [NextGate.fit(training), SharedAdapter.fit(training, training, 7)]
    rivals = [Charged.reader(reader, training) for reader in readers]
    assert all(rival.layer_step_ms > rival.token_step_ms == 0 for rival in rivals)
    settings = SETTINGS.model_copy(update={"policies": ("mixtral_offloading",)})
    ours = [Charged(TokenStep(0.4), 0.02)]
    bare, full = replay_splits(splits, training, training, ours, settings, rivals=rivals)
    names = [
        f"{name}_prefetch_{out}" for name in ("next_gate", "shared_adapter") for out in ("lru", "rival_anticipate")
    ]
    assert not {*names} & {*bare.facts}
    assert [name for name in full.facts if name in names] == names
    sizes = {one.facts.policy: len(one.replays) for one in full.policies}
    assert [sizes[name] for name in names] == [3, 1, 1, 1], "the first one over LRU at every capacity"
    assert full.facts[names[1]].evicted_by == "rival"
    assert full.facts[names[1]].is_driven_by("rival")
    assert not full.facts[names[0]].is_driven_by("rival")
    for place in full.places:
        assert not full.facts[full.best_without_predictor(place).replay.policy].is_driven_by("rival")
    assert (bare.facts["mixtral_offloading"].gate, full.facts["mixtral_offloading"].gate) == (
        "stand-in gate",
        "real gate",
    )
    assert full.facts["mixtral_offloading"].title == "Mixtral-offloading (real gate)"
    assert full.case.events.trace.hidden is None, "other processes need not have them"
    tables = all_tables([bare, full], seed=7)
    assert set(tables["on_device"]["gate"].drop_nulls()) == {"stand-in gate", "real gate"}
    with pytest.raises(TypeError, match="reads no hidden states"):
        replay_splits({"test": hidden_trace(3)}, training, training, ours, settings, rivals=ours)
