"""Every figure that was published beside the traces, recomputed: a generator a family.

Percent are of 100, times in milliseconds.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.golden.card_checks import card_checks
from benchmarks.golden.check import Check
from benchmarks.golden.device_checks import device_checks
from benchmarks.golden.known_models import known_model_checks
from benchmarks.golden.pinning import pinning_checks
from benchmarks.golden.recordings import PhoneRun, phone_run, toy
from moe_beyond.devices.calibrate import fit_token_time
from moe_beyond.formats import importers
from moe_beyond.paper.protocol import WARM_UP_TOKENS, published_replay
from moe_beyond.predictor.baselines import OneClusterMoeInfinity
from moe_beyond.predictor.recall import most_probable
from moe_beyond.simulator.bounds.belady import BeladyForced
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.engine.results import MIB
from moe_beyond.simulator.policies.on_demand import LayerLfu, LayerLru, Lfu, Lru
from moe_beyond.traces.schema import Trace

# the project's names; its engine loads what it uses, so its Belady may not bypass
CURVE_POLICIES: dict[str, Policy] = {
    "lru": Lru(),
    "belady": BeladyForced(),
    "lfu": Lfu(),
    "layer": LayerLru(),
    "layerlfu": LayerLfu(),
}
PHONES = {"qwen": (4000, 74.9), "gptoss": (3000, 32.4)}
"""Recording -> MiB of its cache, and the hit rate that its engine counted, in percent."""
SEEDS = range(10)


def toy_checks(traces: Path) -> Iterator[Check]:
    """All counts of the hand-checkable toy: event-atomic LRU, two slots in each of three layers."""
    events, manifest, table = toy(traces / "conformance")
    expected = manifest["expected"]
    budget = Budget.slots(events.metadata, manifest["capacity_blocks_total"], per_layer=True)
    result = replay(events, LayerLru(), budget)
    total = result.total
    ours: dict[str, float] = {
        "total_accesses": total.accesses,
        "hits": total.hits,
        "misses": total.misses,
        "compulsory_misses": total.compulsory_misses,
        "capacity_misses": total.misses - total.compulsory_misses,
        "evictions": total.evictions,
        "cache_insertions": total.loads,
        "transferred_blocks": total.loads,
        "cache_churn_blocks": total.loads + total.evictions,
        "blocks_per_model_token": total.loads / total.tokens,
    }
    per_step = np.bincount(events.step_N, weights=result.misses_N)
    ours |= {f"step_miss_p{q}": float(np.percentile(per_step, q, method="higher")) for q in (50, 95, 99)}
    ours["max_step_misses"] = float(per_step.max())
    yield from (Check(f"toy_{name}", value, expected[name]) for name, value in ours.items())
    agreeing = np.sum(result.misses_N == table["misses"].to_numpy())
    yield Check("toy_events_with_the_expected_misses", float(agreeing), table.height)


def phone_checks(traces: Path) -> Iterator[Check]:
    """The phone's own hit rate, every row of the published curves, the bytes and the time of its tokens."""
    for name, (budget_mib, percent) in PHONES.items():
        run = phone_run(traces / "bigmoe-on-edge", name)
        budget = Budget.bytes(run.events.metadata, budget_mib * MIB)
        result = replay(run.events, Lru(), budget, overrun=True)
        yield Check(f"phone_{name}_hit_percent", 100 * result.total.hit_rate, percent, 0.05)
        yield from _curve_checks(name, run)
        yield from _token_checks(name, run, result.misses_N)


def _curve_checks(name: str, run: PhoneRun) -> Iterator[Check]:
    for row in run.curve.iter_rows(named=True):
        policy = CURVE_POLICIES.get(row["policy"])
        if policy is None:
            continue  # `random`: its draws were not published
        budget = Budget.bytes(run.events.metadata, row["budget_mib"] * MIB, per_layer=policy.per_layer)
        result = replay(run.events, policy, budget, overrun=True)
        row_name = f"curve_{name}_{row['budget_mib']}_{row['policy']}"
        yield Check(f"{row_name}_hit_percent", 100 * result.total.hit_rate, row["hit_pct_cum"], 0.0006)
        yield Check(f"{row_name}_decode_hit_percent", 100 * result.decode.hit_rate, row["hit_pct_decode"], 0.0006)
        yield Check(f"{row_name}_read_mib", result.total.bytes_moved / MIB, row["read_mib"], 0.06)


def missed_bytes_S(run: PhoneRun, misses_N: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Bytes that each decoded token missed."""
    missed_S = np.zeros(run.events.num_steps, np.int64)
    np.add.at(missed_S, run.events.step_N, np.asarray(run.events.metadata.expert_bytes)[run.events.layer_N] * misses_N)
    return missed_S[1:]


def _token_checks(name: str, run: PhoneRun, misses_N: npt.NDArray[np.int32]) -> Iterator[Check]:
    missed_S, read_S = missed_bytes_S(run, misses_N), run.metrics["read_bytes"].to_numpy()
    # the phone reads whole pages around an expert
    yield Check(f"phone_{name}_bytes_read_over_missed", read_S.sum() / missed_S.sum(), 1, 0.005)
    wall_S = run.metrics["wall_ms"].to_numpy()
    half = len(wall_S) // 2
    fitted = fit_token_time(missed_S[:half], wall_S[:half])
    error = float(np.median(np.abs(fitted.predict_ms(missed_S[half:]) - wall_S[half:]) / wall_S[half:]))
    shortfall = {"gptoss": "dense weights do not fit into the phone: six thousand page faults a token decide"}
    yield Check(
        f"phone_{name}_token_time_median_error_percent",
        100 * error,
        10,
        relation="at most",
        shortfall=shortfall.get(name, ""),
    )


def paper_checks(traces: Path) -> Iterator[Check]:
    """The paper's replay of its own predictor and baseline: over ten random fillings the mean, and the farthest off."""
    webglm = importers.read("moe-beyond-csv", traces / "webglm.tar.xz")
    predicted_TLK = webglm.predicted_TLK
    if predicted_TLK is None:
        raise AssertionError("the pairs hold predictions")
    counted_T = webglm.positions_T >= WARM_UP_TOKENS
    actual, predicted = webglm.experts_TLK[counted_T], predicted_TLK[counted_T]
    recall = (actual[..., :, None] == predicted[..., None, :]).any(axis=-1).mean()
    yield Check("paper_predictor_recall_percent", 100 * float(recall), 72.5, 0.05)
    baseline_TLK = paper_baseline(traces, webglm.num_tokens)
    answers = {
        "predictor": (predicted_TLK, {166: 72.8, 332: 81.6, 832: 91.0}),
        "baseline": (baseline_TLK, {166: 16.8, 332: 39.2, 832: 71.1}),
    }
    for name, (named_TLK, published) in answers.items():
        for capacity, percent in published.items():
            rates = [100 * published_replay(webglm, named_TLK, capacity, seed).hit_rate for seed in SEEDS]
            farthest = max(rates, key=lambda rate: abs(rate - percent))
            yield Check(f"paper_{name}_hit_percent_at_{capacity}_mean", float(np.mean(rates)), percent, 0.4)
            yield Check(f"paper_{name}_hit_percent_at_{capacity}_farthest", farthest, percent, 0.4)


def paper_baseline(traces: Path, num_tokens: int) -> npt.NDArray[np.integer]:
    """What the paper's form of MoE-Infinity names: an average of the first nine training prompts by number."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(traces / "puffin.tar.xz") as archive:
        numbered = {int(found[1]): file for file in archive if (found := re.search(r"prompt_(\d+)_", file.name))}
        archive.extractall(
            folder, [numbered[n] for n in sorted(numbered)[: OneClusterMoeInfinity.PROMPTS]], filter="data"
        )
        history = importers.read("moe-beyond-csv", Path(folder))
    # the prediction is the same for every token
    one_TLE = OneClusterMoeInfinity.fit(history).probabilities_TLE(history)[:1]
    named_TLK = most_probable(one_TLE, history.metadata.top_k)
    return np.broadcast_to(named_TLK, (num_tokens, *named_TLK.shape[1:]))


def importer_checks(traces: Path) -> Iterator[Check]:
    """What the importers find in each archive, against what is said of it."""
    counts: dict[str, Callable[[Trace], float]] = {
        "prompts": lambda trace: trace.num_prompts,
        "tokens": lambda trace: trace.num_tokens,
        "layers": lambda trace: trace.metadata.num_layers,
        "experts": lambda trace: trace.metadata.num_experts,
        "top_k": lambda trace: trace.metadata.top_k,
        "prefill_tokens": lambda trace: int(trace.num_prefill_P.sum()),
    }
    deepseek = {"layers": 26, "experts": 64, "top_k": 6}
    said: dict[str, tuple[str, str, dict[str, float]]] = {
        "puffin": ("moe-beyond-csv", "puffin.tar.xz", {"prompts": 1851, "tokens": 177_471, **deepseek}),
        "webglm": ("moe-beyond-csv", "webglm.tar.xz", {"prompts": 50, "tokens": 790, **deepseek}),
        "esft": ("esft", "esft.tar.xz", {"prompts": 173, **deepseek}),
        "gpt_oss": (
            "gpt-oss-fingerprint",
            "gpt-oss-20b.tar.xz",
            {"prompts": 220, "tokens": 69_175, "layers": 24, "experts": 32, "top_k": 4, "prefill_tokens": 0},
        ),
        "qwen": (
            "bigmoe-route",
            "bigmoe-on-edge/qwen.route.csv.gz",
            {"prompts": 1, "layers": 48, "experts": 128, "top_k": 6, "prefill_tokens": 28},
        ),
        "gptoss": (
            "bigmoe-route",
            "bigmoe-on-edge/gptoss.route.csv.gz",
            {"prompts": 1, "layers": 36, "experts": 128, "top_k": 2, "prefill_tokens": 85},
        ),
    }
    for name, (format_name, file, expected) in said.items():
        trace = importers.read(format_name, traces / file)
        yield from (Check(f"import_{name}_{what}", counts[what](trace), value) for what, value in expected.items())
        if name == "esft":
            # said to be about 25,000
            yield Check("import_esft_tokens", trace.num_tokens, 25_000, 500)


FAMILIES: dict[str, Callable[[Path], Iterator[Check]]] = {
    "toy": toy_checks,
    "phone": phone_checks,
    "paper": paper_checks,
    "importers": importer_checks,
    "devices": device_checks,
    "known models": known_model_checks,
    "card": card_checks,
    "pinning": pinning_checks,
}
