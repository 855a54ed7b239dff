import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from optuna.trial import TrialState

from moe_beyond.errors import InputError
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.training.fit import Size
from moe_beyond.training.settings import TrainSettings
from moe_beyond.tuning import choose, search, work
from moe_beyond.tuning.choice import MEASURED
from moe_beyond.tuning.ledger import Claim, Ledger
from moe_beyond.tuning.payoff import bench_of
from moe_beyond.tuning.settings import SearchSpace, TuneSettings
from moe_beyond.tuning.space import all_candidates, no_larger, parts
from moe_beyond.tuning.storage import place_of
from tests.predictor.small import SETTINGS
from tests.traces_of_chance import chance_trace
from tests.tuning_case import FileLog, job, tune_settings


def trials(*rows):
    names = ("trial", "state", "width", "depth", "heads", "latency_ms", "size_bytes", "ms_per_token", "ended")
    return pl.DataFrame([dict(zip(names, row, strict=True)) for row in rows], schema_overrides={"ended": pl.String})


SIZES = SearchSpace(train={})
TABLE = trials(
    (0, "complete", 64, 1, 2, 0.1, 100, 41.0, None),
    (1, "complete", 96, 1, 2, 0.2, 200, 40.0, None),
    (2, "complete", 128, 2, 4, 0.4, 300, 39.5, None),
    (3, "pruned", 192, 3, 4, None, None, None, "ended after epoch 1"),
)


def test_the_rule_takes_the_least_time_per_token_of_what_answers_fast_enough():
    assert choose(TABLE, TuneSettings(space=SIZES), 50.0).best == {"width": 128, "depth": 2, "heads": 4}
    slower = choose(TABLE, TuneSettings(space=SIZES, max_latency_ms=0.3), 50.0)
    assert slower.best == {"width": 96, "depth": 1, "heads": 2}
    assert slower.trials["chosen"].to_list() == [False, True, False, False]
    assert slower.trials["reason"].to_list() == [
        "1.000 ms per token more than trial 1",
        "least time per token on phone_ufs at capacity 0.1: 40.000 ms (LRU without a predictor 50.000 ms)",
        "its token step takes 0.400 ms, more than tune.max_latency_ms",
        "ended after epoch 1",
    ]


def test_equal_times_go_to_the_smaller():
    table = TABLE.with_columns(ms_per_token=pl.lit(40.0))
    assert choose(table, TuneSettings(space=SIZES), 50.0).best["width"] == 64


def test_a_latency_that_no_candidate_meets_names_the_parameter():
    with pytest.raises(InputError, match=r"tune.max_latency_ms: 0.05 ms, but the fastest candidate takes 0.100 ms"):
        choose(TABLE, TuneSettings(space=SIZES, max_latency_ms=0.05), 50.0)


def test_a_search_in_which_nothing_could_be_measured_says_why():
    with pytest.raises(InputError, match="no candidate could be measured; the first one: ended after epoch 1"):
        choose(TABLE.tail(1), TuneSettings(space=SIZES), 50.0)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"winow": (8,)}, "train.winow is not a parameter of train that can be searched"),
        ({"epochs": (1, 2)}, "train.epochs is not a parameter of train that can be searched"),
        ({"window": (4,)}, "train.window: Input should be greater than or equal to 8 .found 4."),
        ({"window": ()}, "train.window: no value to try"),
    ],
)
def test_a_space_that_train_does_not_take_is_refused(train, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(train=train)


def test_a_candidate_is_a_size_and_parameters_of_the_fit():
    space = SearchSpace(width=(8, 16), depth=(1,), heads=(2,), train={"window": (8, 16), "dropout": (0.0,)})
    candidates = all_candidates(space)
    assert len(candidates) == 4
    size, settings = parts(candidates[-1], TrainSettings())
    assert size == Size(16, 1, 2)
    assert (settings.window, settings.dropout, settings.epochs) == (16, 0.0, TrainSettings().epochs)


def test_smaller_is_smaller_in_every_number_but_heads():
    base = {"width": 64, "depth": 2, "heads": 4, "window": 32}
    assert no_larger(base, base | {"heads": 2})
    assert no_larger(base | {"depth": 1}, base)
    assert not no_larger(base | {"depth": 1, "window": 64}, base)
    assert not no_larger({"width": 64, "mix": "a"}, {"width": 96, "mix": "b"})


@pytest.fixture
def quick(monkeypatch):
    """Trials that train nothing: recall rises with width and epochs, cost with width. Returns the sizes fitted."""
    fitted = []

    def fit(train, validation, size, settings, *, epochs, seed, scratch, log_step):
        fitted.append(size)
        if size == Size(16, 1, 2) and settings.dropout == 0.5:
            raise InputError("train: loss is nan at step 3; lower train.learning_rate")
        for epoch in range(epochs):
            recall = size.width / 100 + epoch / 1000 if settings.dropout == 0.0 else 1 / size.width
            log_step({"validation/recall_at_k": recall, "validation/loss": 1.0}, 10 * (epoch + 1))
        return size

    def cost(job, size, directory):
        numbers = dict.fromkeys(MEASURED, size.width) | {"latency_ms": size.width / 10, "ms_per_token": 99 - size.width}
        return numbers | {"use": "token_step", "at_ms": 5}

    monkeypatch.setattr("moe_beyond.tuning.trial.fit", fit)
    monkeypatch.setattr("moe_beyond.tuning.trial._cost", cost)
    return fitted


class Interrupted(FileLog):
    """Dies as the second trial logs its epoch: after the study noted it, before the fit's checkpoint is complete."""

    def __call__(self, name, params, run_id=None):
        if len(self.runs()) == 1:
            self.slow_s = -1  # time.sleep refuses it
        return super().__call__(name, params, run_id)


def test_a_study_tries_each_candidate_once_and_resumes_after_an_interruption(tmp_path):
    with pytest.raises(ValueError, match="sleep"):
        search(job(tmp_path / "study", Interrupted(tmp_path / "log"), trials=2))
    log = FileLog(tmp_path / "log")
    assert len(log.runs()) == 2
    result, run_ids = search(job(tmp_path / "study", log, trials=2))
    assert result.trials["state"].to_list() == ["complete"] * 2
    assert result.trials["chosen"].sum() == 1
    assert result.trials["ms_per_token"].min() == result.trials.filter(pl.col("chosen"))["ms_per_token"][0]
    assert result.trials.select("width", "heads").n_unique() == 2
    # the interrupted one went on in its own record
    assert sorted(run_ids) == sorted(run.run_id for run in log.runs())
    assert len(run_ids) == 2
    for run in log.runs():
        points = {(line["step"], line["at_ms"]) for line in run.lines() if "validation/loss" in line.get("metrics", ())}
        assert len(points) == 1, "an epoch is logged at one time, however often"
    again, _ = search(job(tmp_path / "study", log, trials=2))
    assert again.trials.equals(result.trials), "a finished study is not run again"
    assert json.dumps(result.metrics())


def test_an_undisturbed_study_comes_out_the_same_again(tmp_path, quick):
    space = SearchSpace(width=(8, 16, 24), depth=(1, 2), heads=(1, 2), train={"window": (8, 16)})
    first, _ = search(job(tmp_path / "a", FileLog(tmp_path / "x"), space=space, trials=12))
    second, _ = search(job(tmp_path / "b", FileLog(tmp_path / "y"), space=space, trials=12))
    assert first.trials.equals(second.trials)
    assert first.best["width"] == 24
    assert first.trials.select("width", "depth", "heads", "window").n_unique() == 12


def test_a_candidate_that_fails_for_good_is_named_and_not_tried_again(tmp_path, quick):
    diverging = SETTINGS.model_copy(update={"dropout": 0.5})
    result, _ = search(job(tmp_path / "study", FileLog(tmp_path / "log"), train=diverging))
    failed = result.trials.filter(pl.col("state") == "fail").row(0, named=True)
    assert (failed["width"], failed["heads"], failed["recall_at_k"]) == (16, 2, None)
    assert "loss is nan" in failed["reason"]
    assert (len(quick), quick.count(Size(16, 1, 2))) == (4, 1)
    assert result.metrics()["failed"] == 1


def test_a_trial_behind_a_smaller_one_ends_early(tmp_path, quick):
    worse_when_wide = SETTINGS.model_copy(update={"dropout": 0.1})
    log = FileLog(tmp_path / "log")
    space = SearchSpace(width=(8, 16), depth=(1,), heads=(2,), train={})
    (tmp_path / "earlier.csv").write_text("width,depth,heads,ms_per_token\n16,1,2,9\n8,1,2,5\n7,1,1,4\n")
    settings = {"space": space, "epochs": 3, "pruning_margin": 0.05, "warm_start": str(tmp_path / "earlier.csv")}
    result, _ = search(job(tmp_path / "study", log, train=worse_when_wide, **settings))
    by_width = {row["width"]: row for row in result.trials.iter_rows(named=True)}
    assert (by_width[8]["trial"], by_width[8]["state"]) == (0, "complete"), (
        "the faster of the earlier search comes first"
    )
    assert by_width[16]["state"] == "pruned"
    assert by_width[16]["reason"].startswith("ended after epoch 1: trial 0 is no larger")
    assert result.metrics()["pruned"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; give a copy of an earlier trials.csv or study:NAME"),
        ("width,depth,heads\n7,1,1\n", "holds no candidate of tune.space"),
    ],
)
def test_a_warm_start_that_holds_nothing_is_refused(tmp_path, text, message):
    path = tmp_path / "earlier.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        search(job(tmp_path / "study", FileLog(tmp_path / "log"), warm_start=str(path)))


def test_a_study_starts_from_another_in_the_same_storage(tmp_path, quick):
    first, _ = search(job(tmp_path, FileLog(tmp_path / "x"), name="first", trials=1))
    second, _ = search(job(tmp_path, FileLog(tmp_path / "y"), name="second", trials=1, warm_start="study:first"))
    assert second.best == first.best
    with pytest.raises(InputError, match="no study 'third' in the storage"):
        search(job(tmp_path, FileLog(tmp_path / "z"), name="fourth", warm_start="study:third"))


def claimed(ledger):
    claim = ledger.claim()
    assert isinstance(claim, Claim)
    return claim


def test_a_worker_that_dies_three_times_on_a_candidate_gives_it_up(tmp_path):
    made = job(tmp_path / "study", FileLog(tmp_path / "log"), trials=1)
    ledger = Ledger(made.place, made.settings, made.seed)
    candidates = []
    for _ in range(3):
        claim = claimed(ledger)  # and never finished
        candidates.append(claim.candidate)
        claim.note("owner", f"{ledger.owner}0")  # a process that is gone
    assert candidates[0] == candidates[1] == candidates[2]
    assert ledger.claim() == "done"
    [failed] = [trial for trial in ledger.trials(TrialState.FAIL) if "reason" in trial.user_attrs]
    assert failed.user_attrs["reason"] == "its worker died 3 times"


def test_nobody_takes_what_another_worker_has(tmp_path):
    made = job(tmp_path / "study", FileLog(tmp_path / "log"))
    mine = Ledger(made.place, made.settings, made.seed)
    others = Ledger(made.place, made.settings, made.seed)
    others.owner = "elsewhere:1:0.00"
    first = claimed(mine)
    first.note("owner", others.owner)  # on another machine, and its sign of life is fresh
    second = claimed(mine)
    assert second.candidate != first.candidate
    assert first.trial.number not in {trial.number for trial in mine.trials(TrialState.FAIL)}


def test_the_environment_names_the_storage_before_the_parameter(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://user:secret@host/db")
    assert place_of(None, "study", tmp_path).url == "postgresql+psycopg2://user:secret@host/db"
    monkeypatch.setenv("OPTUNA_STORAGE", "sqlite:///user:secret@x.db")
    with pytest.raises(InputError, match="no PostgreSQL address") as caught:
        place_of(None, "study", tmp_path)
    assert "secret" not in str(caught.value)
    monkeypatch.delenv("OPTUNA_STORAGE")
    assert place_of(None, "study", tmp_path).url is None


class Oracle:
    """Knows what comes, or its very opposite."""

    name, horizon = "oracle", 1

    def __init__(self, right):
        self.right = right

    def probabilities_TLE(self, trace):
        shape = (trace.num_tokens, trace.metadata.num_layers, trace.metadata.num_experts)
        answer = np.full(shape, 0.0 if self.right else 1.0, np.float32)
        np.put_along_axis(answer, trace.experts_TLK.astype(np.int64), 1.0 if self.right else 0.0, axis=2)
        return answer

    def layer_probabilities_HTLE(self, trace):
        return self.probabilities_TLE(trace)[None]


def test_time_per_token_falls_with_what_a_predictor_knows_and_rises_with_its_own_time():
    trace = chance_trace(6, seed=4)
    bench = bench_of(trace, tune_settings(capacity=0.4), SimulateSettings(lookahead_layers=2))
    good, bad = (bench.payoff(Oracle(right), 0.0, 0.0) for right in (True, False))
    assert good.ms_per_token < bench.on_demand_ms() < bad.ms_per_token
    assert bench.payoff(Oracle(True), 3.0, 100.0).ms_per_token == pytest.approx(good.ms_per_token + 3.0, abs=0.5)
    assert bench.payoff(Oracle(True), 3.0, 100.0).use == "token_step"


def test_prompts_without_decode_have_no_time_per_token():
    trace = chance_trace(6, seed=4)
    prefill_only = replace(trace, num_prefill_P=np.diff(trace.prompt_offsets).astype(np.int32))
    with pytest.raises(InputError, match=r"simulate.prefill: batched, .*; set it to token_by_token"):
        bench_of(prefill_only, tune_settings(), SimulateSettings())
    bench = bench_of(prefill_only, tune_settings(), SimulateSettings(prefill="token_by_token"))
    assert bench.on_demand_ms() > 0
    with pytest.raises(InputError, match="device 'abacus' is unknown"):
        bench_of(trace, tune_settings(device="abacus"), SimulateSettings())


def test_only_as_many_tokens_as_wanted_are_replayed():
    trace = chance_trace(40, seed=4)
    bench = bench_of(trace, tune_settings(replay_tokens=100), SimulateSettings())
    assert 100 <= bench.trace.num_tokens < 140


def test_work_ends_at_once_where_all_is_tried(tmp_path, quick):
    made = job(tmp_path / "study", FileLog(tmp_path / "log"), trials=1)
    search(made)
    work(made)
    assert len(FileLog(tmp_path / "log").runs()) == 1
