"""Commands: their documents and tables, and the one line of an error."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from docs.card import sample_header
from moe_beyond.advisor.one_replay import NO_PREFILL
from moe_beyond.cli import app
from moe_beyond.devices.device import NO_RECORDING, load_device
from moe_beyond.devices.workload import ASSUMED_DENSE
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies.on_demand import LayerLru
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.traces import store
from tests.traces_of_chance import chance_trace

LRU = ("--policy", "lru", "--capacity", 10)


@pytest.fixture
def trace_file(tmp_path):
    store.write_parquet(chance_trace(16), tmp_path / "trace.parquet")
    return tmp_path / "trace.parquet"


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def printed(*words):
    """The JSON document of a command that succeeds."""
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def error_of(*words):
    """The message of a command that fails with one line."""
    result = run(*words)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_describe_prints_a_table_or_json_and_help_names_every_command(trace_file):
    described = printed("describe", trace_file)
    assert described["prompts"] == 16
    assert described["activations"] == described["tokens"] * 3 * 2
    assert "chance" in run("describe", trace_file).stdout
    shown = run("--help").stdout
    for command in (
        "import",
        "export",
        "describe",
        "card",
        "assess",
        "score",
        "replay",
        "advise",
        "calibrate-device",
        "measure-device",
        "fit-device",
    ):
        assert command in shown


def test_assess_gives_a_verdict_with_reasons(trace_file):
    card = printed("assess", trace_file)
    assert card["verdict"] in ("go", "go with a bigger cache", "do not")
    assert card["reasons"]


def test_an_exported_dataset_reads_as_the_trace_it_came_from(trace_file, tmp_path):
    assert run("export", "hub", trace_file, tmp_path / "hub").exit_code == 0
    before, after = (printed("describe", path) for path in (trace_file, tmp_path / "hub"))
    for name in ("prompts", "tokens", "activations", "columns", "domains"):
        assert before[name] == after[name]


def test_an_error_is_one_line_with_status_one(tmp_path):
    assert "none.parquet" in error_of("describe", tmp_path / "none.parquet")
    assert "unknown" in error_of("import", "unknown", tmp_path / "in", tmp_path / "out")


def test_messages_name_the_file_that_they_speak_of(tmp_path, monkeypatch):
    few, bare, flat = (tmp_path / name for name in ("few.parquet", "bare.parquet", "flat.csv"))
    store.write_parquet(chance_trace(3), few)
    store.write_parquet(replace(chance_trace(3), token_texts=None, token_ids_T=None), bare)
    assert error_of("advise", few, "--device", "laptop_nvme", "--capacity", 10).startswith(f"{few}: 3 prompts with ")
    assert error_of("export", "moe-beyond-csv", bare, tmp_path / "out").startswith(f"{bare}: the trace has neither")
    flat.write_text("read_bytes,wall_ms\n" + "5,1.5\n" * 40)
    found = error_of("calibrate-device", flat, tmp_path / "mine.yaml", "--resident-mib", 1)
    assert found.startswith(f"{flat}: ")
    other = chance_trace(12)
    other = replace(other, metadata=other.metadata.model_copy(update={"layer_numbers": (4, 5, 6)}))
    store.write_parquet(other, tmp_path / "other.parquet")
    words = ("replay", few, "--policy", "static_popularity", "--capacity", 10, "--train", tmp_path / "other.parquet")
    assert error_of(*words).startswith(f"{tmp_path}/other.parquet: layer_numbers is (4, 5, 6)")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for command in (("describe", "."), ("replay", ".", *LRU), ("import", "moe-beyond-csv", ".", tmp_path / "out")):
        assert error_of(*command).startswith(f"{tmp_path}/empty: ")


def test_a_folder_that_cannot_be_made_is_one_line(trace_file, tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = error_of("export", "hub", trace_file, tmp_path / "file/sub/set")
    assert found == f"{tmp_path}/file/sub: this folder cannot be made (Not a directory); choose another place"


def test_score_gives_recall_and_the_papers_hit_rates(trace_file, exported):
    scored = printed("score", trace_file, "--predictor", exported[0])
    horizons = {"token", *(f"{h + 1}_ahead" for h in range(OnnxPredictor(exported[0]).horizon))}
    assert len(horizons) >= 3
    assert set(scored["quality"]) == set(scored["published_protocol"]) == horizons
    for horizon in horizons:
        quality, replayed = scored["quality"][horizon], scored["published_protocol"][horizon]
        assert set(quality) == {"all/all", "all/1", "all/2", "all/3", "prefill/all", "decode/all"}
        assert quality["all/all"]["recall_low"] <= quality["all/all"]["recall_at_k"]
        assert set(replayed) == {"4 experts", "9 experts", "24 experts"}
        assert 0 < replayed["24 experts"]["hit_rate"] <= 1


def test_replay_counts_what_the_library_does(trace_file):
    words = ("replay", trace_file, "--policy", "layer_lru", "--capacity", 12)
    trace = store.read_parquet(trace_file)
    # what engines do is the default: what an event has just used is kept
    for options, overrun in (((), True), (("--no-overrun",), False)):
        found, events = printed(*words, *options), events_of(trace)
        plain = replay(events, LayerLru(), Budget.slots(trace.metadata, 12, per_layer=True), overrun=overrun).total
        assert (found["hits"], found["misses"], found["accesses"]) == (plain.hits, plain.misses, plain.accesses)
        assert (found["held_at_most_experts"] > 12) == overrun == any("were held" in note for note in found["notes"])
    assert found["split_over_layers"] == "even"
    rate = "hit_rate_unlimited_link"
    assert found[f"{rate}_low"] <= found[rate] <= found[f"{rate}_high"]
    assert "time" not in found
    assert rate in run(*words).stdout


def test_both_forms_of_a_trace_and_of_a_budget_say_the_same(trace_file, tmp_path):
    store.write_working(store.read_parquet(trace_file), tmp_path / "working")
    slots = printed("replay", trace_file, *LRU)
    mib = 10 * 1000 / 2**20
    in_bytes = printed("replay", tmp_path / "working", "--policy", "lru", "--budget-mib", mib)
    assert in_bytes.pop("budget_mib") == pytest.approx(mib, rel=1e-3)
    assert in_bytes == {name: value for name, value in slots.items() if name != "budget_mib"}


@pytest.fixture
def slow(tmp_path):
    text = "about: slow\nlink_gb_per_s: 0.001\nsetup_us: 0\nlanes: 1\nmemory_gb_per_s: 60\nlayer_overhead_us: 60\n"
    (tmp_path / "mine.yaml").write_text(text)
    return tmp_path / "mine.yaml"


def test_where_nothing_is_decoded_nothing_is_timed(trace_file, tmp_path):
    trace = store.read_parquet(trace_file)
    alone = replace(trace, num_prefill_P=np.diff(trace.prompt_offsets).astype(np.int32)).select(np.arange(1))
    store.write_parquet(alone, tmp_path / "prefill.parquet")
    words = ("replay", tmp_path / "prefill.parquet", *LRU, "--device", "laptop_nvme")
    found = printed(*words)
    for name in ("ms_per_token", "tokens_per_second", "stall_ms_per_token", "hit_rate", "mib_per_token"):
        assert found["time"][name] is None
    assert found["decode_hit_rate_unlimited_link"] is None
    assert "--prefill token_by_token" in found["notes"][0]
    assert any(line.startswith("- Nothing was decoded") for line in run(*words).stdout.splitlines())
    decoded = printed(*words, "--prefill", "token_by_token")
    assert decoded["time"]["ms_per_token"] > 0
    # of one prompt no interval is known
    rate = "hit_rate_unlimited_link"
    assert (decoded[f"{rate}_low"], decoded[f"{rate}_high"]) == (None, None)
    assert decoded[rate] > 0


def test_modes_change_what_is_counted(trace_file):
    words = ("replay", trace_file, *LRU)
    plain = printed(*words)
    assert printed(*words, "--sequential")["judged"].startswith("access by access")
    assert printed(*words, "--batch", 4)["accesses"] < plain["accesses"]
    assert printed(*words, "--cold")["compulsory_misses"] > plain["compulsory_misses"]
    tokens = printed(*words, "--prefill", "token_by_token")
    assert tokens["accesses"] == tokens["tokens"] * 3 * 2


def test_a_policy_that_is_fitted_takes_training_prompts(trace_file, tmp_path):
    store.write_parquet(chance_trace(20, seed=3, name="train"), tmp_path / "train.parquet")
    words, train = ("replay", trace_file, *LRU), ("--train", tmp_path / "train.parquet")
    popularity = (*words, "--policy", "static_popularity")
    message = "policy 'static_popularity' learns from other prompts; name a trace of them with --train"
    assert error_of(*popularity) == message
    assert printed(*popularity, *train)["policy"] == "static_popularity"
    assert printed(*words, "--split", "fitted", *train)["split_over_layers"] == "fitted"


def test_replay_prefetches_by_a_predictor(trace_file, exported, slow):
    words = ("replay", trace_file, "--capacity", 20, "--predictor", exported[0])
    named = ("--policy", "prefetch_lru", "--width", 3, "--threshold", 0.2)
    ahead, unlimited = printed(*words, *named, "--device", slow), printed(*words, *named)
    assert ahead["prefetch"] == {"width": 3, "threshold": 0.2, "layers": False, "next_token": False}
    assert ahead["prefetches"] > 0
    layers = printed(*words, "--policy", "layer_prefetch_lru", "--device", "laptop_nvme")
    assert layers["policy"] == "predictor_layer_prefetch_lru"
    assert layers["prefetch"]["width"] == 2
    # each is charged for the steps that it uses
    charge = OnnxPredictor(exported[0]).charge
    slowdown = load_device("laptop_nvme").predictor_slowdown
    both = (charge.token_step_ms * slowdown, charge.layer_step_ms * slowdown)
    for found, expected in ((ahead, (charge.token_step_ms, 0)), (layers, both)):
        time = found["time"]
        assert (time["token_step_ms_charged"], time["layer_step_ms_charged"]) == pytest.approx(expected)
    # two hit rates: with any link in time, and on the device
    time = ahead.pop("time")
    assert ahead.pop("notes") == [*unlimited.pop("notes"), ASSUMED_DENSE, NO_PREFILL, NO_RECORDING]
    assert ahead == unlimited
    assert time["prefetches_late"] > 0
    assert time["hit_rate"] < unlimited["decode_hit_rate_unlimited_link"]


def test_prompts_of_the_training_data_or_of_another_model_are_refused(tmp_path, train_trace, exported):
    seen, other = (tmp_path / f"{name}.parquet" for name in ("seen", "other"))
    store.write_parquet(train_trace.select(np.arange(16)), seen)
    unseen = chance_trace(16)
    # as many layers, but others
    meta = unseen.metadata.model_copy(update={"layer_numbers": (4, 5, 6)})
    store.write_parquet(replace(unseen, metadata=meta), other)
    for name, *options in (
        ("score",),
        ("replay", "--policy", "prefetch_lru", "--capacity", 5),
        ("advise", "--device", "laptop_nvme", "--capacity", 5),
    ):
        options += ["--predictor", exported[0]]
        assert error_of(name, seen, *options).startswith("16 of 16 prompts ('train0' for one) took part in the fit of ")
        printed(name, seen, *options, "--allow-training-prompts")
        assert "made for 3 layers, 16 experts, top-2" in error_of(name, other, *options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--capacity", 0), "capacity: 0 experts, chance has 48; give between 1 and 48"),
        (("--budget-mib", 0.0005), "budget: 524 bytes, the largest expert of chance has 1000; give more"),
        ((), "how large is the cache? give either --capacity in experts or --budget-mib in MiB"),
        (("--capacity", 5, "--device", "abacus"), "device 'abacus' is unknown; known are apple_ssd,"),
        (("--capacity", 5, "--batch", 0), "batch: 0 prompts at once; give at least 1"),
        (("--capacity", 5, "--predictor", "nowhere"), "nowhere/manifest.json: no such file"),
        (("--capacity", 5, "--sequential", "--device", "phone_ufs"), "a sequential replay has no clock"),
    ],
)
def test_what_cannot_be_replayed_is_one_line(trace_file, words, message):
    assert error_of("replay", trace_file, "--policy", "lru", *words).startswith(message)


def test_advice_is_one_screen_and_one_document(trace_file, exported):
    words = ("advise", trace_file, "--device", "laptop_nvme", "--capacity", 12, "--predictor", exported[0])
    found = printed(*words)
    assert found["verdict"]["answer"] in ("yes", "no", "with more memory", "not needed")
    assert found["best"]["ms_per_token_low"] <= found["best"]["ms_per_token"] <= found["best"]["ms_per_token_high"]
    assert any("prefetch" in plan["plan"] for plan in found["tried"])
    assert found["settings"]["token_step_ms"] > 0
    screen = run(*words).stdout
    assert len(screen.splitlines()) <= 45
    for part in ("best", "runner-up", "engines today", "Memory: ", "tokens/s", "perfect foresight"):
        assert part in screen


def test_replay_gives_the_range_of_heat_where_a_recording_tells_it(trace_file):
    phone, laptop = (
        printed("replay", trace_file, *LRU, "--device", name) for name in ("phone_oneplus_15r", "laptop_nvme")
    )
    low_ms, high_ms = phone["time"]["ms_per_token_by_heat"]
    assert low_ms < phone["time"]["ms_per_token"] < high_ms
    assert (NO_RECORDING in phone["notes"], NO_RECORDING in laptop["notes"]) == (False, True)
    assert laptop["time"]["ms_per_token_by_heat"] is None


def test_a_first_token_is_modelled_for_each_prompt_and_so_is_a_start(trace_file):
    phone, laptop = (
        printed("replay", trace_file, *LRU, "--device", name) for name in ("phone_oneplus_15r", "laptop_nvme")
    )
    ms = phone["time"]["modelled_first_token_ms_by_prompt"]
    assert len(ms) == phone["prompts"]
    assert phone["time"]["modelled_first_token_ms"] == pytest.approx(sum(ms) / len(ms))
    assert phone["time"]["modelled_first_token_ms_longest"] == max(ms)
    assert phone["time"]["modelled_start_ms"] > 0
    assert laptop["time"]["modelled_start_ms"] is None
    assert (NO_PREFILL in phone["notes"], NO_PREFILL in laptop["notes"]) == (False, True)
    assert "values; --json lists them" in run("replay", trace_file, *LRU, "--device", "phone_oneplus_15r").stdout
    screen = " ".join(run("advise", trace_file, "--device", "phone_oneplus_15r", "--capacity", 20).stdout.split())
    assert "First token, modelled: " in screen
    assert "starting the engine takes" in screen


def test_a_calibrated_device_can_be_used_at_once(tmp_path, trace_file):
    rows = [f"{read},{40 + read / 2e6}" for read in range(10**6, 31 * 10**6, 10**6)]
    recorded, device, text = (tmp_path / name for name in ("run.csv", "mine.yaml", "mine.txt"))
    recorded.write_text("\n".join(["read_bytes,wall_ms", *rows]))
    found = printed("calibrate-device", recorded, device, "--resident-mib", 100)
    assert found["link_gb_per_s"] == pytest.approx(2)
    assert found["median_error_on_second_half"] < 0.01
    time = printed("replay", trace_file, *LRU, "--device", device)["time"]
    assert (time["device"], time["tokens_per_second"]) == ("mine", pytest.approx(1000 / time["ms_per_token"]))
    # the dense parts that it was told of are those of the replay
    assert (time["dense_mib"], time["dense_size_from"]) == (pytest.approx(100, abs=0.01), "device")
    assert printed("replay", trace_file, *LRU, "--device", device, "--dense-mib", 50)["time"][
        "dense_mib"
    ] == pytest.approx(50)
    by_trace = printed("calibrate-device", recorded, device, "--trace", trace_file, "--dense-mib", 30)
    assert (by_trace["resident_mib"], by_trace["dense_size_from"]) == (pytest.approx(30, abs=0.01), "given")
    assert error_of("calibrate-device", recorded, device).endswith("give either --trace or --resident-mib")
    message = f"{text}: a device file ends in .yaml"
    assert error_of("calibrate-device", recorded, text, "--resident-mib", 100) == message


def test_card_tells_of_a_header_and_assess_draws_a_model_beside_others(tmp_path, trace_file):
    header = sample_header(tmp_path / "first_bytes")
    found = printed("card", header, "--device", "laptop_nvme", "--memory-gib", "12")
    (device,) = found["devices"]
    assert device["budget_bytes"] == 12 * 2**30 - found["dense_bytes"]
    worst, best = device["tokens_per_s_worst_and_best"]
    assert worst < device["tokens_per_s"][0] < device["tokens_per_s"][1] < best
    assert len(found["expert_bytes_by_layer"]) == found["moe_layers"] == 48
    said = run("card", header, "--budget-mib", "4000").stdout
    assert "48 of them with 128 experts, top-8" in said
    assert NO_RECORDING in said
    assert "give either --memory-gib" in error_of("card", header, "--budget-mib", 1, "--memory-gib", 1)
    assert "not readable" in error_of("card", tmp_path / "none")

    assert run("export", "hub", trace_file, tmp_path / "set").exit_code == 0
    figure = tmp_path / "beside.svg"
    rows = printed("assess", trace_file, "--beside", tmp_path / "set", "--beside", "known", "--figure", figure)[
        "beside"
    ]
    assert [row["model"] for row in rows[:2]] == ["chance (this trace)", "chance"]
    assert figure.read_text().startswith("<svg")
    assert "24 x 32, top-4" in run("assess", trace_file, "--beside", "known").stdout
    assert "a figure ends in" in error_of("assess", trace_file, "--figure", tmp_path / "a.txt")
    assert "no hit_curves/" in error_of("assess", trace_file, "--beside", tmp_path)
    # a single other model gives the card no band
    assert "curves of a single model" in error_of("card", header, "--beside", tmp_path / "set")
