"""An engine's hits beside a replay's: equal, or where they part."""

import json

import polars as pl
import pytest
from typer.testing import CliRunner

from moe_beyond.cli import app
from moe_beyond.formats import importers
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.engine.results import MIB
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.traces import store
from tests.phone_traces import shared
from tests.traces_of_chance import chance_trace

SETUP = ("--policy", "lru", "--capacity", "10", "--json")


@pytest.fixture
def case(tmp_path):
    """A trace file, and the engine's rows: those of the very replay."""
    trace = chance_trace(4)
    store.write_parquet(trace, tmp_path / "trace.parquet")
    events = events_of(trace)
    counted = replay(events, Lru(), Budget.slots(trace.metadata, 10), overrun=True)
    rows = pl.DataFrame(
        {
            "step": events.step_N,
            "layer": [trace.metadata.layer_numbers[layer] for layer in events.layer_N],
            "accesses": events.offsets_N[1:] - events.offsets_N[:-1],
            "misses": counted.misses_N,
        }
    )
    return tmp_path, rows, counted


def conform(case, rows, *words):
    if rows is not None:
        rows.write_csv(case[0] / "rows.csv")
        words = ("--engine-rows", str(case[0] / "rows.csv"), *words)
    result = CliRunner().invoke(app, ["conform", str(case[0] / "trace.parquet"), *SETUP, *words])
    return result, json.loads(result.stdout) if result.stdout else None


def test_the_same_hits_are_equal(case):
    _, rows, counted = case
    for result, found in (conform(case, rows), conform(case, None, "--engine-hits", str(counted.total.hits))):
        assert result.exit_code == 0, result.stderr
        assert found["equal"]
        assert found["hits"] == found["engine_hits"] == counted.total.hits
        assert found["phases"]["decode"]["hits"] == counted.decode.hits


def test_a_miss_more_in_one_event_is_found_by_step_and_layer(case):
    _, rows, _ = case
    event = rows.with_row_index().filter(pl.col("accesses") > pl.col("misses"))["index"][-1]
    misses = rows["misses"].to_list()
    misses[event] += 1
    result, found = conform(case, rows.with_columns(misses=pl.Series(misses)))
    assert result.exit_code == 3
    (first,) = found["parts"]["first"]
    assert {key: first[key] for key in ("step", "layer")} == {key: rows[key][event] for key in ("step", "layer")}
    assert first["hits"] == first["engine_hits"] + 1
    assert found["parts"]["engine_more_by_layer"] == {str(rows["layer"][event]): -1}


def test_what_would_make_them_equal_is_named(case):
    result, found = conform(case, case[1], "--cold")
    assert result.exit_code == 3
    assert found["would_be_equal"] == ["without --cold"]
    result, found = conform(case, None, "--engine-hits", str(case[2].decode.hits))
    assert result.exit_code == 3
    assert any("decoding alone" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop("misses"), "expected hits"),
        (lambda rows: rows.with_columns(pl.col("misses") + 0.5), "'misses': expected whole numbers from 0 to 1"),
        (lambda rows: rows.with_columns(accesses=10**12 + 1), "'accesses': expected whole numbers from 0"),
        (lambda rows: rows.with_columns(misses=pl.col("accesses") + 1), "'misses': more of them than accesses"),
        (lambda rows: rows.with_columns(layer=77), "'layer': 77 is none of"),
        (lambda rows: rows.with_columns(step=0), "two rows of one step, layer"),
    ],
)
def test_bad_rows_end_in_one_line(case, change, message):
    result, _ = conform(case, change(case[1]))
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "rows.csv: " in line
    assert message in line


@pytest.mark.parametrize(("name", "budget_mib"), [("qwen", 4000), ("gptoss", 3000)])
def test_the_phones_hits_are_those_of_its_lru(tmp_path, name, budget_mib):
    trace = importers.read("bigmoe-route", shared("bigmoe-on-edge", f"{name}.route.csv.gz"))
    store.write_parquet(trace, tmp_path / "trace.parquet")
    last = pl.read_csv(shared("bigmoe-on-edge", f"{name}.metrics"), comment_prefix="#")["cache_hit_pct"][-1]
    hits = replay(events_of(trace), Lru(), Budget.bytes(trace.metadata, budget_mib * MIB), overrun=True).total
    # the engine prints two digits of the share; the number is the one that it must have counted
    assert 100 * hits.hit_rate == pytest.approx(last, abs=0.01)
    words = ["conform", str(tmp_path / "trace.parquet"), "--policy", "lru", "--budget-mib", str(budget_mib)]
    engine = round(last / 100 * hits.accesses)
    result = CliRunner().invoke(app, [*words, "--engine-hits", str(engine)])
    assert (result.exit_code == 0) == (engine == hits.hits)
