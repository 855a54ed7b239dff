"""replay, advise and calibrate-device: what people type, and the one line that they read when it cannot be done."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from moe_beyond.cli import app
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies.on_demand import LayerLru
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.traces import store
from tests.traces_of_chance import chance_trace

TRACE = chance_trace(16)


@pytest.fixture
def trace_file(tmp_path):
    store.write_parquet(TRACE, tmp_path / "trace.parquet")
    return tmp_path / "trace.parquet"


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def told(*words):
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_replay_counts_what_the_library_does(trace_file):
    found = told("replay", trace_file, "--policy", "layer_lru", "--capacity", 12)
    plain = replay(events_of(TRACE), LayerLru(), Budget.slots(TRACE.metadata, 12, per_layer=True)).total
    assert (found["hits"], found["misses"], found["accesses"]) == (plain.hits, plain.misses, plain.accesses)
    assert found["split_over_layers"] == "even"
    assert found["hit_rate_low"] <= found["hit_rate"] <= found["hit_rate_high"]
    assert "time" not in found
    table = run("replay", trace_file, "--policy", "layer_lru", "--capacity", 12)
    assert table.exit_code == 0
    assert "hit_rate" in table.stdout


def test_both_forms_of_a_trace_and_of_a_budget_say_the_same(trace_file, tmp_path):
    store.write_working(TRACE, tmp_path / "working")
    slots = told("replay", trace_file, "--policy", "lru", "--capacity", 10)
    mib = 10 * 1000 / 2**20
    in_bytes = told("replay", tmp_path / "working", "--policy", "lru", "--budget-mib", mib)
    assert in_bytes.pop("budget_mib") == pytest.approx(mib, rel=1e-3)
    assert in_bytes == {name: value for name, value in slots.items() if name != "budget_mib"}


def test_replay_takes_the_time_on_a_device_of_ones_own(trace_file, tmp_path):
    words = ("replay", trace_file, "--policy", "lru", "--capacity", 10, "--device")
    packaged = told(*words, "laptop_nvme")["time"]
    assert packaged["tokens_per_second"] == pytest.approx(1000 / packaged["ms_per_token"])
    own = "about: slow\nlink_gb_per_s: 0.001\nsetup_us: 0\nlanes: 1\nmemory_gb_per_s: 60\nlayer_overhead_us: 60\n"
    (tmp_path / "mine.yaml").write_text(own)
    slow = told(*words, tmp_path / "mine.yaml")["time"]
    assert slow["device"] == "mine"
    assert slow["stall_ms_per_token"] > packaged["stall_ms_per_token"]


def test_modes_change_what_is_counted(trace_file):
    words = ("replay", trace_file, "--policy", "lru", "--capacity", 10)
    plain = told(*words)
    assert told(*words, "--sequential")["judged"].startswith("access by access")
    assert told(*words, "--batch", 4)["accesses"] < plain["accesses"]
    assert told(*words, "--cold")["compulsory_misses"] > plain["compulsory_misses"]
    tokens = told(*words, "--prefill", "token_by_token")
    assert tokens["accesses"] == tokens["tokens"] * 3 * 2


def test_a_policy_that_learns_takes_training_prompts(trace_file, tmp_path):
    store.write_parquet(chance_trace(20, seed=3, name="train"), tmp_path / "train.parquet")
    words = ("replay", trace_file, "--policy", "static_popularity", "--capacity", 10)
    assert run(*words).stderr == (
        "error: policy 'static_popularity' learns from other prompts; name a trace of them with --train\n"
    )
    assert told(*words, "--train", tmp_path / "train.parquet")["policy"] == "static_popularity"
    fitted = told(
        "replay", trace_file, "--policy", "lru", "--capacity", 10, "--split", "fitted", "--train",
        tmp_path / "train.parquet",
    )  # fmt: skip
    assert fitted["split_over_layers"] == "fitted"


def test_replay_fetches_ahead_on_a_predictors_word(trace_file, exported):
    words = ("replay", trace_file, "--capacity", 20, "--predictor", exported[0], "--device", "laptop_nvme")
    ahead = told(*words, "--policy", "prefetch_lru", "--width", 3, "--threshold", 0.2)
    assert ahead["prefetch"] == {"width": 3, "threshold": 0.2, "layers": False}
    assert ahead["prefetches"] > 0
    layers = told(*words, "--policy", "layer_prefetch_lru", "--layer-predictor-ms", 0)
    assert layers["policy"] == "predictor_layer_prefetch_lru"
    assert layers["prefetch"]["width"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--capacity", 0), "capacity: 0 experts, chance has 48; give between 1 and 48"),
        (("--capacity", -3), "capacity: -3 experts, chance has 48; give between 1 and 48"),
        (("--capacity", 49), "capacity: 49 experts, chance has 48; give between 1 and 48"),
        (("--budget-mib", 0.0005), "budget: 524 bytes, the largest expert of chance has 1000; give more"),
        ((), "how large is the cache? give either --capacity in experts or --budget-mib in MiB"),
        (("--capacity", 5, "--budget-mib", 1), "how large is the cache? give either"),
        (("--capacity", 5, "--device", "abacus"), "device 'abacus' is unknown; known are gpu_pcie3,"),
        (("--capacity", 5, "--batch", 0), "batch: 0 prompts at once; give at least 1"),
        (("--capacity", 5, "--predictor", "nowhere"), "nowhere/token_step.onnx: no such file"),
        (("--capacity", 5, "--sequential", "--device", "phone_ufs"), "a sequential replay has no clock"),
    ],
)
def test_what_cannot_be_replayed_is_one_line(trace_file, words, message):
    result = run("replay", trace_file, "--policy", "lru", *words)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {message}")
    assert len(result.stderr.splitlines()) == 1


def test_a_policy_that_does_not_exist_lists_those_that_do(trace_file):
    result = run("replay", trace_file, "--policy", "lruu", "--capacity", 5)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    for name in ("belady", "layer_lru", "static_popularity", "anticipate"):
        assert name in result.stderr


def test_a_predictor_of_another_model_is_one_line(tmp_path, exported):
    other = chance_trace(16, num_experts=8)
    store.write_parquet(other, tmp_path / "other.parquet")
    for command in (("replay", "--policy", "anticipate"), ("advise", "--device", "laptop_nvme")):
        result = run(command[0], tmp_path / "other.parquet", *command[1:], "--capacity", 5, "--predictor", exported[0])
        assert result.exit_code == 1
        assert "made for 3 layers, 16 experts, top-2" in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_trace_without_weights_is_refused_by_a_policy_that_needs_them(tmp_path):
    store.write_parquet(replace(TRACE, weights_TLK=None), tmp_path / "bare.parquet")
    result = run("replay", tmp_path / "bare.parquet", "--policy", "drop_cold", "--capacity", 5)
    assert result.exit_code == 1
    assert "policy drop_cold: needs router weights" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_advice_is_one_screen_and_one_document(trace_file, exported):
    words = ("advise", trace_file, "--device", "laptop_nvme", "--capacity", 12, "--predictor", exported[0])
    found = told(*words)
    assert found["verdict"]["answer"] in ("yes", "no", "with more memory", "not needed")
    assert found["best"]["ms_per_token_low"] <= found["best"]["ms_per_token"] <= found["best"]["ms_per_token_high"]
    assert any("prefetch" in plan["plan"] for plan in found["tried"])
    assert found["settings"]["predictor_ms"] > 0
    screen = run(*words)
    assert screen.exit_code == 0
    assert len(screen.stdout.splitlines()) <= 45
    for part in ("best", "runner-up", "engines today", "More memory", "tokens/s", "perfect foresight"):
        assert part in screen.stdout


def test_advice_on_too_few_prompts_is_refused(tmp_path):
    store.write_parquet(TRACE.select(np.arange(5)), tmp_path / "few.parquet")
    result = run("advise", tmp_path / "few.parquet", "--device", "laptop_nvme", "--capacity", 5)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: trace: 5 prompts")
    assert len(result.stderr.splitlines()) == 1


def test_a_calibrated_device_can_be_used_at_once(tmp_path, trace_file):
    rows = [f"{read},{40 + read / 2e6}" for read in range(10**6, 31 * 10**6, 10**6)]
    (tmp_path / "run.csv").write_text("\n".join(["read_bytes,wall_ms", *rows]))
    found = told("calibrate-device", tmp_path / "run.csv", tmp_path / "mine.yaml", "--resident-mib", 100)
    assert found["link_gb_per_s"] == pytest.approx(2.0)
    assert found["second_half_foretold_with_median_error"] < 0.01
    device = tmp_path / "mine.yaml"
    assert (
        told("replay", trace_file, "--policy", "lru", "--capacity", 5, "--device", device)["time"]["device"] == "mine"
    )
    result = run("calibrate-device", tmp_path / "run.csv", tmp_path / "mine.txt", "--resident-mib", 100)
    assert result.stderr == f"error: {tmp_path / 'mine.txt'}: a device file ends in .yaml\n"
