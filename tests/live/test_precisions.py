import numpy as np
import pytest
import torch

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.errors import InputError
from moe_beyond.live.decoding import decode
from moe_beyond.live.precisions import Copies, levels_of
from moe_beyond.live.quantiser import INT4, INT8, WHOLE, Quantiser
from moe_beyond.live.session import metadata_of, offloaded
from moe_beyond.live.store import RECORDS, aligned_buffer
from moe_beyond.simulator.engine.online import Online
from moe_beyond.simulator.policies.changed_models import Mc, SeerMoe
from moe_beyond.simulator.policies.hobbit import Hobbit
from moe_beyond.simulator.policies.next_layer import NextLayerMap
from moe_beyond.simulator.policies.on_demand import Lru
from tests.live.live_case import SETTINGS, LiveCase


@pytest.fixture
def case(tmp_path):
    case = LiveCase.of("mixtral", tmp_path / "store")
    assert case.given, "of the model as it is: some tests change its weights"
    return case


def run(case, policy=None, levels_V=(), watch=None):
    """Logits of all passes, and what stood before the experts."""

    def decoded(experts):
        options = {"seed": 1, "keep_logits": True, "given": case.given}
        return decode(case.model, case.tokenizer, case.prompts, experts, SETTINGS, **options)

    if policy is None:
        done, experts = decoded(None), None
    else:
        budget = policy.budget(metadata_of(case.model, case.store), 12)
        with offloaded(case.model, case.store, policy, budget, len(case.prompts), levels_V=levels_V) as experts:
            if watch is not None:
                watch(experts)
            done = decoded(experts)
    return torch.stack([logits for one in done for logits in one.logits_TV]), experts


def quantise_in_place(case, levels_LE):
    """Give the model itself the weights that copies of so many levels have."""
    for index, layer in enumerate(moe_layers(case.model)):
        for expert in range(case.store.num_experts):
            record = aligned_buffer(case.store.stride)
            case.store.read(index * case.store.num_experts + expert, record.numpy().data, 0, case.store.stride)
            quantiser = Quantiser(case.store.parameters, int(levels_LE[index][expert]))
            quantiser.unpack(quantiser.pack(record), record)
            for name, value in case.store.views(record).items():
                layer.experts.get_parameter(name).data[expert] = value


def test_at_full_precision_and_afterwards_the_model_is_its_own(case):
    full, _ = run(case)
    whole, experts = run(case, Lru(), (WHOLE,))
    assert torch.allclose(whole, full, atol=1e-5)
    assert sum(time.read_bytes for time in experts.times) == case.store.stride * sum(t.misses for t in experts.times)
    again, _ = run(case)
    assert torch.equal(again, full)


def test_copies_compute_as_a_model_of_their_weights_and_their_bytes_are_read(case):
    low, experts = run(case, Lru(), (INT8,))
    stride = experts.cache.bytes_VM[0, 0] * case.store.stride / sum(p.nbytes for p in case.store.parameters)
    assert stride <= case.store.stride / 2
    assert sum(time.read_bytes for time in experts.times) == stride * sum(time.misses for time in experts.times)
    quantise_in_place(case, np.full((3, 8), INT8))
    assert torch.allclose(low, run(case)[0], atol=1e-5)


def test_each_expert_has_its_own_bits(case):
    bits_M = np.random.default_rng(0).integers(1, 4, 24)
    policy = Mc(bits_M / 8)
    policy.__dict__["online"] = lambda meta: AllAtLevels(2**bits_M)
    low, _ = run(case, policy)
    quantise_in_place(case, (2**bits_M).reshape(3, 8))
    assert torch.allclose(low, run(case)[0], atol=1e-5)


class AllAtLevels(Online):
    def __init__(self, levels_M):
        super().__init__()
        self.levels_M = levels_M


def test_a_policy_of_two_precisions_reads_both(case):
    gate = NextLayerMap(np.zeros((2, 8, 8), np.float32))
    full, _ = run(case)
    mixed, experts = run(case, Hobbit(gate), (WHOLE, INT4))
    assert experts.cache.result().decode.low_precision_loads > 0
    assert 0 < (mixed - full).abs().max() < full.abs().max()
    levels_VM = levels_of(Hobbit(gate), Online(), case.store)
    assert levels_VM[:, 0].tolist() == [WHOLE, INT8], "a quarter of float32"
    with pytest.raises(InputError, match=r"policy hobbit: levels .* give 2"):
        levels_of(Hobbit(gate), Online(), case.store, (INT8,))


def test_a_pruned_expert_never_computes_for_a_decoded_token(case):
    policy, seen = SeerMoe(np.arange(24) % 2 == 0), []

    def watch(experts):
        route = experts.cache.route

        def watched(members_I, shares_I, keep_I):
            routed = route(members_I, shares_I, keep_I)
            # of a prefill the heaviest one stays in any case
            seen.append((decoding(), members_I[shares_I.argmax()], routed.computes_I))
            return routed

        def decoding():
            return experts._step.decodes

        experts.cache.route = watched

    run(case, policy, watch=watch)
    decoded = np.concatenate([computes_I for decodes, _, computes_I in seen if decodes])
    assert len(decoded) == 2 * sum(decodes for decodes, *_ in seen), "each token has as many experts as ever"
    assert not policy.is_pruned_M[decoded].any()
    for _, heaviest, computes_I in seen:
        assert not policy.is_pruned_M[computes_I[computes_I != heaviest]].any()


def test_a_damaged_copy_and_copies_of_other_experts_are_named(case, tmp_path):
    levels_VM = np.full((1, 24), INT8)
    Copies.open(case.store, levels_VM).close()
    written = (case.store.folder / f"{INT8}-levels" / RECORDS).stat()
    Copies.open(case.store, levels_VM).close()
    assert (case.store.folder / f"{INT8}-levels" / RECORDS).stat() == written, "written once"

    other = LiveCase.of("olmoe", tmp_path / "other")
    (case.store.folder / f"{INT8}-levels").rename(other.store.folder / f"{INT8}-levels")
    with pytest.raises(InputError, match=r"256-levels: holds copies of other experts than .*other/store; delete it"):
        Copies.open(other.store, levels_VM)

    (other.store.folder / f"{INT8}-levels").rename(case.store.folder / f"{INT8}-levels")
    path = case.store.folder / f"{INT8}-levels" / RECORDS
    data = bytearray(path.read_bytes())
    data[:: written.st_size // 24] = bytes(24 * [data[0] ^ 1])
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"256-levels/experts.bin: layer \d, expert \d was changed or damaged"):
        run(case, Lru(), (INT8,))
