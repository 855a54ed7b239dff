"""Writes what the stages write, small: the stages' own columns, and numbers that can be worked out by hand."""

from itertools import product

import polars as pl

from moe_beyond.assess.assessment import assess, cards_table
from moe_beyond.assess.settings import AssessSettings
from moe_beyond.files import write_json, write_tables
from moe_beyond.paper.caches import CACHES
from moe_beyond.paper.scores import PROTOCOL
from moe_beyond.simulator.study.pays import BY_BANDWIDTH, BY_WIDTH, PAYS
from moe_beyond.simulator.study.tables import FACTS, ON_DEVICE
from moe_beyond.simulator.study.timeline import COSTLIEST, TIMELINE
from tests.traces_of_chance import chance_trace

SPLITS = ("test_in_domain", "test_out_of_domain")
DEVICES = {"phone_ufs": 100.0, "laptop_nvme": 50.0}  # ms a token of LRU without a cache
CAPACITIES = {8: 0.05, 16: 0.1, 32: 0.2, 80: 0.5}  # experts, and their share of 160
LAYERS, EXPERTS, TOP_K = 4, 40, 3
OURS, BEST = "predictor_layer_prefetch_anticipate", "token_unigram_prefetch_lru"
# title, predictor, its latency in ms, bound, lossy, prefetches, time as a share of LRU's
POLICIES: dict[str, tuple[str, str | None, float, bool, bool, bool, float]] = {
    "lru": ("LRU", None, 0.0, False, False, False, 1.0),
    "layer_lfu": ("LFU per layer", None, 0.0, False, False, False, 0.95),
    "fifo": ("FIFO", None, 0.0, False, False, False, 1.1),
    "mote": ("MoTE", None, 0.0, False, True, False, 0.3),
    OURS: ("Predictor: prefetch, predicted eviction", "predictor", 0.2, False, False, True, 0.8),
    "predictor_anticipate": ("Predictor: eviction", "predictor", 0.2, False, False, False, 0.97),
    BEST: ("Token unigram: prefetch, LRU", "token_unigram", 0.005, False, False, True, 0.9),
    "belady": ("Belady (bound)", None, 0.0, True, False, False, 0.7),
}
BOUND = 0.5  # the clairvoyant bound's time as a share of LRU's
RECALL = {"predictor": 0.8, "popularity": 0.2, "token unigram": 0.6, "previous token": 0.3}
TIMELINE_MS = 100.0  # of the prompt's prefill; its decoded tokens take a tenth


def ms(device, policy, fraction):
    """Milliseconds a token: less with more capacity."""
    return DEVICES[device] * POLICIES[policy][-1] * (1 - fraction / 2)


def facts(policy):
    title, predictor, _, bound, lossy, prefetches, _ = POLICIES[policy]
    layers = predictor == "predictor"
    return dict(zip(FACTS, (policy, title, predictor, layers, bound, lossy, prefetches, None, None), strict=True))


def spread(name, value, by):
    return {name: value, f"{name}_low": value - by, f"{name}_high": value + by}


def on_device():
    rows = []
    for split, device, policy, (experts, fraction) in product(SPLITS, DEVICES, POLICIES, CAPACITIES.items()):
        time, lru, best = (ms(device, name, fraction) for name in (policy, "lru", BEST))
        rows.append(
            {"split": split, "device": device, **facts(policy), "ours": policy == OURS, "link_idle_share": 0.1}
            | {"capacity_experts": experts, "capacity_fraction": fraction, "best_without_predictor": policy == BEST}
            | {"token_step_ms": POLICIES[policy][2], "layer_step_ms": 0.05 * facts(policy)["ahead_of_layers"]}
            | {"tokens_per_second": 1000 / time, "stall_ms_per_token": time / 2, **spread("ms_per_token", time, 0.5)}
            | {**spread("hit_rate", fraction * 1.1, 0.01), **spread("mib_per_token", 100 * (1 - fraction), 1)}
            | {"gap_closed": (lru - time) / (lru * (1 - BOUND)), **spread("against_lru_ms", time - lru, 0.25)}
            | (spread("against_best_ms", time - best, 0.25) if facts(policy)["predictor"] == "predictor" else {})
            | ({"late_share": 0.5, "useless_share": 0.125} if facts(policy)["prefetches"] else {})
            | {"bound_ms_per_token": lru * BOUND, "bound_hit_rate": 0.75, "bound_mib_per_token": 40.0}
        )
    return pl.DataFrame(rows, ON_DEVICE)


def unlimited_link():
    rows = [
        {"split": split, **facts(policy), "capacity_experts": experts, "capacity_fraction": fraction}
        | {**spread("hit_rate", fraction * 1.5, 0.01), "mass_given_up": 0.4 * (policy == "mote")}
        | {"prefetches": 100 * facts(policy)["prefetches"], "decode_hit_rate": fraction * 1.25, "mib_per_token": 9.0}
        for split, policy, (experts, fraction) in product(SPLITS, POLICIES, CAPACITIES.items())
    ]
    return pl.DataFrame(rows, schema_overrides={"predictor": pl.String})


def pays():
    """Yes on the phone; on the laptop no at the smallest capacity, else only with more bandwidth."""
    rows = []
    for split, device, (experts, fraction) in product(SPLITS, DEVICES, CAPACITIES.items()):
        answer = "yes" if device == "phone_ufs" else "no" if experts == 8 else "only with more bandwidth"
        own, against = ms(device, OURS, fraction), ms(device, "layer_lfu", fraction)
        rows.append(
            {"split": split, "device": device, "capacity_experts": experts, "answer": answer, "policy": OURS}
            | {"title": POLICIES[OURS][0], "against": "layer_lfu", "against_title": "LFU per layer"}
            | {"ms_per_token": own, "against_ms_per_token": against, **spread("difference_ms", own - against, 0.25)}
            | {"link_idle_share_on_demand": 0.07, "link_idle_share": 0.02, "prefetches_in_time": 0.42}
            | {"recall_on_lru_misses": 0.83, "bytes_read_per_byte_saved": 1.4, "token_step_ms": 0.2}
            | {"layer_step_ms": 0.05, "pays_from_gb_per_s": 10.0 if answer.startswith("only") else None}
            | ({"break_even_width": 6, "break_even_token_step_ms": 4.5} if experts == 16 else {})
        )
    return pl.DataFrame(rows, PAYS)


def over_link():
    bandwidths = [
        (split, device, 16, policy, POLICIES[policy][0], link, ms(device, policy, 0.1) / link)
        for split, device, policy, link in product(SPLITS, DEVICES, ("lru", "layer_lfu", OURS, BEST), (0.5, 2.0, 8.0))
    ]
    widths = [
        (split, device, 16, OURS, POLICIES[OURS][0], width, 40.0 + width, 90.0, 0.3)
        for split, device, width in product(SPLITS, DEVICES, (2, 3, 6))
    ]
    return pl.DataFrame(bandwidths, BY_BANDWIDTH, orient="row"), pl.DataFrame(widths, BY_WIDTH, orient="row")


def ablation(timed):
    steps = {"lru": "lru", "prefetch by layer step": OURS, "belady": "belady"}
    parts = [
        timed.filter(policy=policy, capacity_experts=16).with_columns(step=pl.lit(step), added=pl.lit(added))
        for step, (added, policy) in enumerate(steps.items())
    ]
    return pl.concat(parts)


def timeline():
    events, clock = [], 0.0
    for policy, position, layer in product((OURS, "lru"), (0, 7, 8, 9), range(1, LAYERS + 1)):
        time = TIMELINE_MS / LAYERS / (10 if position else 1)
        text = "\u0120word" if position else None
        token = (SPLITS[1], policy, POLICIES[policy][0], "laptop_nvme", "prompt/1", position, text, layer)
        events.append((*token, clock, time / 4, 3 * time / 4, 2, 1, 1, 0, 2, 0.5))
        clock += time
    misses = [
        (*event[:8], "3 14 15", 10.0 - place / 2, 0.1 if place < 5 else 0.6) for place, event in enumerate(events[:16])
    ]
    return pl.DataFrame(events, TIMELINE, orient="row"), pl.DataFrame(misses, COSTLIEST, orient="row")


def paper(present):
    rates = [("ours_hit_rate", 0.742, 0.01), ("paper_hit_rate", 0.728, 0.01), ("difference_hit_rate", 0.014, 0.005)]
    loads = [("ours_mib_per_token", 1599.0, 9), ("paper_mib_per_token", 1618.0, 9)]
    measures = [*rates, *loads, ("difference_mib_per_token", -19.0, 2)]
    caches = [
        {"split": SPLITS[1], "cache": cache, "capacity_experts": experts}
        | {name: value for measure in measures for name, value in spread(*measure).items()}
        for cache, experts in product(("lru", "paper_lru", "anticipate"), (16, 32))
    ]
    named = [("predictor", "1"), ("published predictions", "token"), ("one-cluster MoE-Infinity", "token")]
    protocol = [(SPLITS[1], *name, 16, 0.7, 0.6, 0.69, 0.71, 1600.0, 1590.0, 1610.0) for name in named]
    keys = {"split": pl.String, "predictor": pl.String, "horizon": pl.String}
    whole = pl.DataFrame([(*row, *[None] * 6) for row in protocol], {**keys, **PROTOCOL}, orient="row")
    return (pl.DataFrame(caches, CACHES), whole) if present else (pl.DataFrame(schema=CACHES), whole.clear())


def quality():
    """As export writes it: ours first, at every horizon."""
    places = [(split, place / 50) for place, split in enumerate(("train", "validation", *SPLITS))]
    lines = [("predictor", "token"), ("predictor", "1"), ("predictor", "2"), *((name, "token") for name in RECALL)]
    rows = [
        {"split": split, "predictor": name, "horizon": horizon, "layer": layer, "tokens": 500, "accuracy": 0.97}
        | {**spread("recall", RECALL[name] - less + 0.02 * (horizon != "token"), 0.01), "phase": "all", "f1_macro": 0.9}
        for (name, horizon), (split, less) in product(dict.fromkeys(lines), places)
        for layer in ("all", *map(str, range(1, LAYERS + 1)))
    ]
    return pl.DataFrame(rows).with_columns(recall_at_k="recall", f1_active="recall").drop("recall")


def hidden():
    """Of ours with hidden states and without, and of the next gate: 90, 84 and 80 % one layer ahead."""
    lines = [("predictor", 0.8, 0.9), ("predictor without hidden states", 0.8, 0.84), ("next gate", None, 0.8)]
    rows = [
        {"split": split, "predictor": name, "horizon": horizon, "places": places, "phase": phase, "tokens": 500}
        | {**spread("recall_at_k", recall, 0.01), "recall_at_8": recall + 0.05, "recall_at_16": 0.99, "exact_set": 0.5}
        | {**spread("recall_on_misses", recall - 0.02, 0.01), "num_places": 2000, "misses": 900, "predicted": 1.0}
        for name, token, one in lines
        for horizon, recall in (("token", token), ("1", one))
        for split, places, phase in product(SPLITS, ("below", "all"), ("all", "prefill", "decode"))
        if recall is not None
    ]
    return pl.DataFrame(rows)


def calibration():
    lows = (0.0, 0.25, 0.5, 0.75)
    bins = [(split, low, low + 0.25, low + 0.125, low + 0.1, 1000) for split, low in product(SPLITS, lows)]
    columns = ["split", "bin_low", "bin_high", "mean_probability", "observed_share", "count"]
    return pl.DataFrame(bins, columns, orient="row")


def assessed():
    """Of traces drawn from a seed, beside another model of unknown size."""
    own = assess(chance_trace(20, num_layers=LAYERS, num_experts=EXPERTS, top_k=TOP_K), AssessSettings())
    other = assess(chance_trace(8), AssessSettings()).card | {"model_id": "other/model", "model_mib": 0.0}
    tables = own.tables | {"cards": cards_table([own.card, other])}
    return tables, own.card


LIVE = {"layer_lru": (0.0, 46.0), "mote": (0.01, 20.0), "hobbit_int4": (0.001, 40.0), "drop_cold": (0.02, 30.0)}
"""By policy the divergence in nats and the modelled ms a token: the last is slower and further off than the second."""


def live():
    """LRU, ours and a lossy policy decoded; of the lossy ones above what they do to the output."""
    decoded = [("lru", 50.0, 50.0, 0.25, 0), (OURS, 40.0, 36.0, 0.375, None), ("mote", 20.0, 22.0, 0.5, 3)]
    measured = [
        {"policy": name, "title": POLICIES[name][0], "lossy": name == "mote", "ms_per_token": time}
        | {"stall_ms_per_token": time / 2, "predictor_ms_per_token": 0.0, "hit_rate": hits, "mib_per_token": 0.8}
        | {"modelled_ms_per_token": modelled, "modelled_hit_rate": hits + 0.02 * (name == OURS), "events": 300}
        | {"modelled_mib_per_token": 0.8, "events_that_differ": differ, "greatest_logit_difference": 2e-6}
        for name, time, modelled, hits, differ in decoded
    ]
    quality = [
        {"policy": name, **spread("kl", kl, kl / 4), **spread("kl_p99", 8 * kl, kl), **spread("ms_per_token", time, 1)}
        | {**spread("top1_agreement", 1 - 2 * kl, kl), **spread("perplexity", 16 + 8 * kl, 2)}
        | {**spread("perplexity_full", 16.0, 2), **spread("hit_rate", 0.3, 0.01), **spread("mib_per_token", 0.7, 0.1)}
        | {**spread("misses_per_token", 3.0, 0.1), **spread("weight_given_up", 10 * kl, kl)}
        for name, (kl, time) in LIVE.items()
    ]
    link = {"device": ["laptop_nvme"], "gb_per_s": [0.025], "split": [SPLITS[1]], "capacity": [16]}
    return {"measured": pl.DataFrame(measured), "quality": pl.DataFrame(quality), "link": pl.DataFrame(link)}


def write_example(root, *, times=True, published=True):
    """Write every file that the page reads.

    Args:
        root: The project's root.
        times: Whether a device was replayed.
        published: Whether the traces carry published predictions.
    """
    timed, (events, misses), (caches, protocol) = on_device(), timeline(), paper(published)
    tables = {"on_device": timed, "pays": pays()} | dict(zip(("by_bandwidth", "by_width"), over_link(), strict=True))
    tables |= {"ablation": ablation(timed), "timeline": events, "costliest_misses": misses}
    tables = tables if times else {name: frame.clear() for name, frame in tables.items()}
    reasons = pl.DataFrame({"split": SPLITS, "title": "Cache-prior routing", "reason": "no router weights"})
    reports = root / "reports"
    simulate = tables | {"unlimited_link": unlimited_link(), "not_replayed": reasons, "paper_replay": caches}
    write_tables(reports / "simulate" / "tables", simulate)
    export = {"quality": quality(), "calibration": calibration(), "published_protocol": protocol, "hidden": hidden()}
    write_tables(reports / "export" / "tables", export)
    routing, card = assessed()
    write_tables(reports / "assess" / "tables", routing)
    write_tables(reports / "verify" / "tables", live())
    write_json(reports / "assess" / "card.json", card)
    int8 = {"token_step_lost_points": 0.11, "layer_step_lost_points": 0.6, "token_step_bytes": 2**20}
    sizes = {"token_step_bytes": 4 * 2**20, "layer_step_bytes": 2**20}
    metrics = {
        "reference": {"parameters": 4_198_656},
        "extract": {"prompts": 28, "tokens": 3112},
        "split": {"contamination": {"exact_duplicates": 0}},
        "tune": {"chosen": {"reason": "least time per token on phone_ufs"}},
        "train": {"epochs": 4, "best_epoch": 2, "parameters": 1_317_824},
        "export": sizes | {"int8": int8, "calibration_error": dict.fromkeys(SPLITS, 0.0016)},
    }
    for stage, values in metrics.items():
        write_json(reports / stage / "metrics.json", values)
    # what a run measured differs from run to run: the page must not show it
    write_json(reports / "export" / "latency.json", {"measured": {"token_step_ms": 0.08540700014}})
    (root / "data" / "splits").mkdir(parents=True, exist_ok=True)
    places = ["train"] * 3 + ["test_in_domain"] * 2 + ["test_out_of_domain"]
    prompts = [(f"{at}", "code" if "out" in split else "english", split, f"f{at}") for at, split in enumerate(places)]
    prompts = pl.DataFrame(prompts, ["prompt_id", "domain", "split", "fingerprint"], orient="row")
    history = {"epoch": [0, 1, 2, 3], "train_loss": [0.5, 0.4, 0.3, 0.2], "validation_loss": [0.4, 0.3, 0.25, 0.26]}
    history = pl.DataFrame(history | {"validation_recall_at_k": [0.5, 0.6, 0.7, 0.7]})
    prompts.write_csv(root / "data/splits/prompts.csv")
    trials().write_csv(reports / "tune/trials.csv")
    history.write_csv(reports / "train/history.csv")


def trials():
    rows = [
        {"trial": trial, "state": "complete", "width": 64 + 32 * trial, "depth": 1, "recall_at_k": recall}
        | {"recall_at_k_ahead_1": recall, "token_step_ms": 0.1 + trial / 20, "layer_step_ms": 0.02, "parameters": 10**6}
        | {"ms_per_token": 90.0 - trial, "hit_rate": 0.4, "use": "both_steps", "chosen": trial == 2}
        | {"reason": f"reason {trial}"}
        for trial, recall in enumerate((0.5, 0.45, 0.6))
    ]
    ended = {"trial": 3, "state": "pruned", "width": 160, "depth": 1, "chosen": False, "reason": "ended early"}
    return pl.DataFrame([*rows, ended], infer_schema_length=None)
