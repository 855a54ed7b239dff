import json

import numpy as np
import pytest

from moe_beyond.errors import InputError
from moe_beyond.predictor.baselines import Popularity
from moe_beyond.registry.drift.report import drift, measure
from moe_beyond.registry.drift.window import Measures, Window, read_counts, read_window, write_window
from moe_beyond.registry.settings import DriftSettings
from moe_beyond.simulator.study.settings import SimulateSettings
from tests.traces_of_chance import chance_trace

SETTINGS = DriftSettings(chance_draws=50)


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
    assert {name: signal.drifted for name, signal in signals.items()} == {
        "psi": False,
        "recall_loss": True,
        "hit_rate_loss": False,
        "regret_rise": True,
    }


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
    (tmp_path / "window.json").unlink()
    with pytest.raises(InputError, match=r"window\.json: no such file"):
        read_window(tmp_path)


def test_counts_are_read_strictly(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_text("layer,expert,count\n1,0,5\n1,1,6\n4,0,7\n4,1,0\n")
    window = read_counts(path)
    assert window.layer_numbers == (1, 4)
    assert window.counts_LE.tolist() == [[5, 6], [7, 0]]
    for text, message in [
        ("layer,expert,count\n1,0,5\n1,0,6\n", "2 rows for 1 layers of 1 experts"),
        ("layer,expert,count\n1,0,-5\n1,1,6\n", "counts of at least 0"),
        ("layer,expert,count\n1,-1,5\n1,0,6\n", "counts of at least 0"),
        ("layer,expert,count\n1,0,5\n1,2,6\n", "2 rows for 1 layers of 3 experts"),
        ("layer,expert,count\n1,0,x\n", "not a CSV of columns layer,expert,count"),
        ("layer,expert,count\n", "counts of at least 0"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_counts(path)
    # and of the same model alone
    with pytest.raises(InputError, match="3 layers of 16 experts"):
        drift(Window.of(chance_trace(5, num_experts=8)), Window.of(chance_trace(5)), SETTINGS, 0)
