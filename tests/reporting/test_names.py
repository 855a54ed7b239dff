from moe_beyond.reporting.names import kind, label, looks, policy_looks
from tests.reporting.example import POLICIES, facts


def a_new_policy(**given):
    nothing = {"title": "New", "predictor": None, "bound": False, "lossy": False, "prefetches": False}
    return nothing | given


def test_known_devices_and_splits_have_titles_and_others_are_words():
    titles = {
        "laptop_nvme": "Laptop, NVMe (no recording)",
        "test_out_of_domain": "Another domain",
        "my_own_device": "My own device",
    }
    assert {name: label(name) for name in titles} == titles


def test_the_colour_of_a_policy_says_what_kind_it_is():
    colours = {title: look.colour for title, look in policy_looks(map(facts, POLICIES), "predictor").items()}
    expected = dict.fromkeys(("Predictor: eviction", "Predictor: prefetch, predicted eviction"), "@blue")
    expected |= {"LRU": "@vermilion", "FIFO": "@vermilion", "Belady (bound)": "@ink", "MoTE": "@purple"}
    assert colours.items() >= expected.items() | {("Token unigram: prefetch, LRU", "@orange")}


def test_no_two_lines_look_alike():
    assert len(set(policy_looks(map(facts, POLICIES), "predictor").values())) == len(POLICIES)
    assert len(set(looks([str(place) for place in range(30)]).values())) == 30


def test_a_policy_unknown_to_the_report_is_described_by_its_facts():
    new = ({}, {"prefetches": True, "lossy": True}, {"bound": True, "prefetches": True})
    assert [kind(a_new_policy(**given)) for given in new] == ["on demand", "prefetches, lossy", "bound"]
    rows = [a_new_policy(prefetches=True), a_new_policy(title="Newer", predictor="ours", prefetches=True)]
    assert [look.colour for look in policy_looks(rows, "ours").values()] == ["@green", "@blue"]
