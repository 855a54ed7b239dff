"""Drift: the index of each layer, its signals and limits, windows on disk, and the check with its run in MLflow."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.errors import InputError
from moe_beyond.predictor.baselines import Popularity
from moe_beyond.registry.drift.check import check_drift
from moe_beyond.registry.drift.report import drift, measure
from moe_beyond.registry.drift.stability import chance_psi, psi_L
from moe_beyond.registry.drift.window import Measures, Window, read_counts, read_window, write_window
from moe_beyond.registry.settings import DriftSettings, PublishSettings
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.traces import store
from tests.traces.refusals import refused
from tests.traces_of_chance import chance_trace
from tests.tracking.small_pipeline import client, only, points, records, warnings

SETTINGS = DriftSettings(chance_draws=50)


def test_the_index_is_that_of_its_definition():
    new, old = np.array([[30, 70]]), np.array([[50, 50]])
    p, q = np.array([30.5, 70.5]) / 101, np.array([50.5, 50.5]) / 101
    assert psi_L(new, old)[0] == pytest.approx(float(((p - q) * np.log(p / q)).sum()))


@given(st.lists(st.integers(0, 1000), min_size=16, max_size=16))
def test_it_is_symmetric_never_negative_and_zero_for_the_same_usage(counts):
    a_LE, b_LE = np.array(counts).reshape(2, 2, 4)
    assert psi_L(a_LE, b_LE) == pytest.approx(psi_L(b_LE, a_LE))
    assert (psi_L(a_LE, b_LE) >= 0).all()
    assert (psi_L(a_LE, a_LE) == 0).all()


def test_chance_gives_less_with_more_prompts_and_a_real_shift_exceeds_it():
    rng = np.random.default_rng(1)
    even, shifted = np.full(16, 1 / 16), np.r_[np.full(8, 1.5 / 16), np.full(8, 0.5 / 16)]

    def prompts(count, shares):
        return rng.multinomial(60, shares, size=(count, 3)).astype(np.int64)

    few, many = (np.quantile(chance_psi(prompts(n, even), prompts(n, even), 100, 0), 0.95) for n in (5, 80))
    assert many < few / 3
    new, old = prompts(20, shifted), prompts(80, even)
    assert psi_L(new.sum(axis=0), old.sum(axis=0)).max() > 2 * np.quantile(chance_psi(new, old, 100, 0), 0.95)


def test_prompts_of_the_same_kind_are_no_drift_and_other_experts_are():
    old, new = Window.of(chance_trace(60, seed=1)), Window.of(chance_trace(30, seed=2))
    assert not drift(new, old, SETTINGS, 0).drifted
    # a fine-tune that sends every token to the lower half of the experts
    moved = chance_trace(30, seed=2)
    narrow = np.sort(moved.experts_TLK % 8, axis=2)
    counts = np.stack([np.bincount(narrow[:, layer].ravel(), minlength=16) for layer in range(3)])
    report = drift(Window(old.model_id, old.layer_numbers, counts, None), old, SETTINGS, 0)
    assert (report.drifted, report.chance_psi, set(report.signals)) == (True, None, {"psi"})
    assert report.metrics()["drift/drifted"] == 1
    json.dumps(report.document(), allow_nan=False)


def test_few_prompts_must_exceed_what_chance_gives_them():
    old, new = Window.of(chance_trace(60, seed=1, lexical=0.2)), Window.of(chance_trace(1, seed=8, lexical=0.2))
    report = drift(new, old, DriftSettings(max_psi=1e-6, chance_draws=50), 0)
    assert report.signals["psi"].limit == report.chance_psi > 1e-6


def test_losses_are_held_against_their_limits():
    window = Window.of(chance_trace(20))
    then, now = Measures("predictor", 0.8, 0.6, 0.3, 10), Measures("predictor", 0.74, 0.58, 0.45, 10)
    signals = drift(window, window, SETTINGS, 0, measured=(now, then)).signals
    assert set(signals) == {"psi", "recall_loss", "hit_rate_loss", "regret_rise"}
    assert {name for name, signal in signals.items() if signal.drifted} == {"recall_loss", "regret_rise"}


def test_a_replay_knows_recall_hit_rate_and_the_bound():
    trace = chance_trace(20)
    part, whole = (
        measure(trace, Popularity.fit(trace), capacity, SimulateSettings(), prefetch=False) for capacity in (0.25, 1.0)
    )
    assert all(0 < measured < 1 for measured in (part.recall_at_k, part.hit_rate, part.regret))
    assert part.capacity_experts == 12
    # a cache that holds all experts loads each of them once, as foresight does
    assert whole.regret == 0


def test_a_window_reads_as_it_was_written(tmp_path):
    window, measures = Window.of(chance_trace(5)), Measures("predictor", 0.8, 0.6, 0.3, 10)
    write_window(tmp_path, window, measures)
    read, found = read_window(tmp_path)
    assert (read.counts_LE == window.counts_LE).all()
    np.testing.assert_array_equal(read.prompt_counts_PLE, window.prompt_counts_PLE)
    assert (read.model_id, read.layer_numbers, found) == (window.model_id, window.layer_numbers, measures)
    for name in ("window.npz", "window.json"):
        whole = (tmp_path / name).read_bytes()
        for damaged in (whole[:40], whole.replace(b"PK", b"KP"), whole.replace(b"model_id", b"modelid"), b"[]"):
            if damaged != whole:
                (tmp_path / name).write_bytes(damaged)
                refused("window", read_window, tmp_path)
        (tmp_path / name).write_bytes(whole)
    write_window(tmp_path, replace(window, counts_LE=0 * window.counts_LE), measures)
    refused("a window that counts nothing", read_window, tmp_path)
    (tmp_path / "window.json").unlink()
    with pytest.raises(InputError, match=r"window\.json: no such file"):
        read_window(tmp_path)


def test_counts_are_read_strictly(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_text("layer,expert,count\n1,0,5\n1,1,6\n4,0,7\n4,1,0\n")
    window = read_counts(path)
    assert (window.layer_numbers, window.counts_LE.tolist()) == ((1, 4), [[5, 6], [7, 0]])
    for text, message in [
        ("layer,expert,count\n1,0,5\n1,0,6\n", "2 rows for 1 layers of 1 experts"),
        ("layer,expert,count\n1,0,-5\n1,1,6\n", "counts of at least 0"),
        ("layer,expert,count\n1,-1,5\n1,0,6\n", "counts of at least 0"),
        ("layer,expert,count\n1,0,5\n1,2,6\n", "2 rows for 1 layers of 3 experts"),
        ("layer,expert,count\n1,0,x\n", "not a CSV of columns layer,expert,count"),
        ("layer,expert,count\n", "counts of at least 0"),
        ("layer,expert,count\n1,0,0\n1,1,0\n", "counts that are all 0"),
        ("layer,expert,count\n1,0,9007199254740999\n1,1,0\n", "or more than 9007199254740992"),
        ("layer,expert,count,count\n1,0,5,5\n1,1,6,6\n", "column 'count' is there twice"),
        ("a,b,c\n1,0,5\n1,1,6\n", "not a CSV of columns layer,expert,count"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_counts(path)
    # and of the same model alone
    with pytest.raises(InputError, match="3 layers of 16 experts"):
        drift(Window.of(chance_trace(5, num_experts=8)), Window.of(chance_trace(5)), SETTINGS, 0)


def check(root, against="old.parquet"):
    settings = PublishSettings(capacity=0.25, drift=SETTINGS)
    return check_drift(root, root / "new.parquet", against, settings, SimulateSettings(), seed=1, log=True)


@pytest.fixture
def traces(project):
    store.write_parquet(chance_trace(20, seed=1), project / "old.parquet")
    store.write_parquet(chance_trace(10, seed=2), project / "new.parquet")
    return project


def test_it_is_a_run_with_its_signals_and_the_index_of_each_layer(traces):
    report = check(traces)
    run = only(traces, "drift")
    assert run.info.status == "FINISHED"
    assert run.data.metrics.items() >= {"drift/drifted": float(report.drifted), "drift/psi": max(report.psi_L)}.items()
    assert points(client(traces), run, "drift/psi_by_layer") == list(zip((1, 2, 3), report.psi_L, strict=True))
    assert run.data.tags["drift.against"] == "old.parquet"


def test_without_mlflow_it_says_what_it_found_all_the_same(traces, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert check(traces).window is not None
    assert "MLflow lacks 1 run: drift" in warnings(caplog)[0]
    assert len(records(traces)) == 1
    with pytest.raises(InputError, match="failed"):
        check(traces, against="champion")
