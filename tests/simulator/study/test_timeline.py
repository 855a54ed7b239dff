"""One prompt event by event, and the costliest misses."""

import numpy as np
import polars as pl
import pytest

from moe_beyond.simulator.study.study import Charged, replay_splits
from moe_beyond.simulator.study.tables import timeline_tables
from moe_beyond.simulator.study.timeline import COSTLIEST, TIMELINE
from tests.simulator.study.cases import HEADLINE, SETTINGS, PartlyRight, drawn


@pytest.mark.parametrize("width", [None, 4])
def test_the_timeline_of_a_prompt_adds_up_to_its_time(width):
    change = {"prefetch_width": width, "devices": HEADLINE[:1], "policies": ("lru",)}
    predictors = [Charged(PartlyRight(0.5, ahead_right=0.7), 0.3, 0.05)]
    splits = replay_splits({"test": drawn(1)}, drawn(3), drawn(4), predictors, SETTINGS.model_copy(update=change))
    timeline, costliest = timeline_tables(splits)
    trace, used = splits[0].trace, splits[0].chosen[HEADLINE]
    assert (timeline.columns, costliest.columns) == (list(TIMELINE), list(COSTLIEST))
    assert timeline["policy"].unique(maintain_order=True).to_list() == [used, "lru"]
    (prompt,) = timeline["prompt_id"].unique().to_list()
    index = trace.prompt_ids.index(prompt)
    timed, prefill = splits[0].timed_at(HEADLINE), int(trace.num_prefill_P[index])
    for policy in (used, "lru"):
        rows = timeline.filter(pl.col("policy") == policy)
        assert rows.height == 3 * (np.diff(trace.prompt_offsets)[index] - max(0, prefill - 1))
        ends = rows["start_ms"] + rows["compute_ms"] + rows["stall_ms"]
        assert ends[:-1].to_list() == pytest.approx(rows["start_ms"][1:].to_list())
        decoded = rows.filter(pl.col("position") >= prefill)
        taken = (decoded["compute_ms"] + decoded["stall_ms"]).sum()
        assert taken == pytest.approx(timed[policy].time.numerator_P[index])
        waited = decoded.filter((pl.col("demand_loads") > 0) | (pl.col("prefetches_late") > 0))
        assert waited["predicted"].is_between(0, 1).all()
        # the prompt is that of the median stall an event
        if policy == used:
            prompt_S, stall_ms_S = timed[policy].events.prompt_S, timed[policy].stall_ms_S
            assert index == np.argsort(np.bincount(prompt_S, stall_ms_S) / np.bincount(prompt_S))[1]
            assert costliest["stall_ms"][0] >= decoded["stall_ms"].max()
    assert costliest["stall_ms"].to_list() == sorted(costliest["stall_ms"].to_list(), reverse=True)


def test_prompts_that_run_together_have_no_timeline():
    settings = SETTINGS.model_copy(update={"batch": 2, "policies": ("lru",), "devices": HEADLINE[:1]})
    splits = replay_splits({"test": drawn(1)}, drawn(3), drawn(4), [Charged(PartlyRight(0.5), 0.3)], settings)
    assert all(table.is_empty() for table in timeline_tables(splits))
