"""The table of all predictors beside counts made one by one."""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest

from moe_beyond.evaluation.hidden_scores import (
    evaluate_hidden,
    from_hidden,
    hidden_table,
    ranks_of,
    token_step,
    two_steps,
)
from moe_beyond.predictor.baselines import Popularity
from moe_beyond.predictor.next_gate import NextGate
from moe_beyond.simulator.bounds.lru_misses import lru_missed_TLK
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.hidden_traces import hidden_trace, without_some
from tests.simulator.strategies import drawn_TLE, make_trace


@dataclass
class ByChance:
    name: str = "ours"
    horizon: int = 2

    def both_logits(self, trace):
        return drawn_TLE(trace, 1), np.stack([drawn_TLE(trace, 2), drawn_TLE(trace, 3)])


def table_of(trace, missed_TLK, *more):
    candidates = [two_steps(ByChance()), from_hidden(NextGate.fit(trace)), *more]
    return hidden_table(candidates, "test", trace, missed_TLK, resamples=50, seed=0)


def row_of(table, **names):
    (row,) = table.filter(*(pl.col(name) == value for name, value in names.items())).iter_rows(named=True)
    return row


def counted(scores_TLE, trace, where, missed_TLK):
    """Recall at k, 8 and 3 rivals' ways of counting, over (token, layer) places."""
    hits = exact = misses = named_misses = 0
    for token, layer in where:
        scores_E = scores_TLE[token, layer]
        named = sorted(range(len(scores_E)), key=lambda expert: (-scores_E[expert], expert))[:2]
        chosen = trace.experts_TLK[token, layer].tolist()
        hits += len(set(named) & set(chosen))
        exact += set(named) == set(chosen)
        for slot, expert in enumerate(chosen):
            misses += bool(missed_TLK[token, layer, slot])
            named_misses += bool(missed_TLK[token, layer, slot]) and expert in named
    return hits / (2 * len(where)), exact / len(where), misses, named_misses / misses if misses else None


@pytest.mark.parametrize("kept", [lambda trace: trace, without_some])
@pytest.mark.parametrize("phase", ["all", "decode"])
def test_every_figure_is_counted_over_the_same_places(kept, phase):
    trace = kept(hidden_trace(1, (12, 9), (4, 0)))
    missed_TLK = lru_missed_TLK(trace, 6 / 24)
    table = table_of(trace, missed_TLK)
    token_TLE, layers_HTLE = ByChance().both_logits(trace)
    gate = NextGate.fit(trace)
    of_phase = [token for token in range(trace.num_tokens) if phase == "all" or not trace.is_prefill_T[token]]
    for ahead in (1, 2):
        gate_TLE, known_TL = gate.scores_ahead(trace, ahead)
        below = [(token, layer) for token in of_phase for layer in range(3) if known_TL[token, layer]]
        everywhere = [(token, layer) for token in of_phase for layer in range(3)]
        ours_all = np.where((np.arange(3) >= ahead)[None, :, None], layers_HTLE[ahead - 1], token_TLE)
        gate_all = np.where(known_TL[:, :, None], gate_TLE, token_TLE)
        for name, scores_TLE, places, where in (
            ("ours", layers_HTLE[ahead - 1], "below", below),
            ("next gate", gate_TLE, "below", below),
            ("ours", ours_all, "all", everywhere),
            ("next gate", gate_all, "all", everywhere),
        ):
            if not where:
                continue
            row = row_of(table, predictor=name, horizon=str(ahead), places=places, phase=phase)
            found = (row["recall_at_k"], row["exact_set"], row["misses"], row["recall_on_misses"])
            assert found == pytest.approx(counted(scores_TLE, trace, where, missed_TLK))
            assert row["num_places"] == len(where)
            assert row["recall_at_8"] == row["recall_at_16"] == 1  # of eight experts
            assert row["recall_at_k_low"] <= row["recall_at_k"] <= row["recall_at_k_high"]
    predicted = row_of(table, predictor="next gate", horizon="1", places="all", phase=phase)["predicted"]
    assert predicted == pytest.approx(np.mean([gate.scores_ahead(trace, 1)[1][token] for token in of_phase]))


def test_a_token_step_alone_and_the_phase_without_misses():
    trace = hidden_trace(2, (12, 9), (4, 0))
    popularity = Popularity.fit(trace)
    table = table_of(trace, lru_missed_TLK(trace, 4 / 24), token_step(popularity))
    assert set(table.filter(pl.col("predictor") == "popularity")["horizon"]) == {"token"}
    row = row_of(table, predictor="popularity", horizon="token", places="all", phase="prefill")
    assert (row["misses"], row["recall_on_misses"], row["tokens"]) == (0, None, 4)


def test_baselines_are_scored_where_test_splits_have_hidden_states():
    splits = {"train": hidden_trace(1, (60,), (0,)), "validation": hidden_trace(2, (30,), (0,))}
    bare = splits | {"test_in_domain": replace(hidden_trace(3), hidden=None)}

    def missed(trace):
        return lru_missed_TLK(trace, 0.1)

    ours = ByChance(), ByChance()
    assert evaluate_hidden(*ours, bare, missed, resamples=20, seed=7).is_empty()
    table = evaluate_hidden(*ours, bare | {"test_out_of_domain": hidden_trace(4)}, missed, resamples=20, seed=7)
    assert table["split"].unique().to_list() == ["test_out_of_domain"]
    readers = {"next gate", "default vectors", "shared adapter", "ridge", "pre-attention head"}
    assert set(table["predictor"]) == {"ours", "ours without hidden states", "token unigram", *readers}
    assert set(table.filter(pl.col("predictor") == "pre-attention head")["horizon"]) == {"attention"}


def test_ranks_break_ties_by_the_lower_id():
    scores_TLE = np.array([[[1, 3, 3, 0]]], np.float32)
    assert ranks_of(scores_TLE, np.array([[[2, 1, 3]]], np.uint8)).tolist() == [[[1, 0, 3]]]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("capacity", [1, 3, 7, 15])
def test_what_an_lru_misses_is_what_a_replay_counts(seed, capacity):
    trace = make_trace(seed, num_layers=3, num_experts=5, lengths=(6, 1, 9), prefill=(3, 0, 0))
    events = events_of(trace)
    counts = replay(events, Lru(), Budget.slots(trace.metadata, capacity)).misses_N
    missed_TLK = lru_missed_TLK(trace, capacity / 15)
    assert not missed_TLK[trace.is_prefill_T].any()
    decoded_N = np.nonzero(events.is_decode_S[events.step_N])[0]
    for event in decoded_N:
        token, layer = events.token_S[events.step_N[event]], events.layer_N[event]
        assert missed_TLK[token, layer].sum() == counts[event]
