"""The reference model: its balance loss, its fixed budget, and that training resumes and repeats to the bit."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.capture.reference import model as reference_model
from moe_beyond.capture.reference import training
from moe_beyond.capture.reference.corpus import Document
from moe_beyond.capture.reference.evaluation import expert_load, load_summary
from moe_beyond.capture.reference.settings import ReferenceSettings
from moe_beyond.errors import InputError
from moe_beyond.threads import torch_threads

SHAPE = {"hidden_size": 32, "attention_heads": 2, "moe_layers": 2, "num_experts": 8, "top_k": 2, "shared_experts": 1}
BUDGET = {"tokens": 12 * 4 * 16, "sequence_tokens": 16, "batch_sequences": 4, "validation_tokens": 64, "validations": 2}
TINY = ReferenceSettings.model_validate({**SHAPE, **BUDGET, "expert_width": 8, "vocabulary_size": 300})
TEXT = [Document(f"d{n}", f"the {n} quick brown foxes jump over {n * 7} lazy dogs. " * 20) for n in range(8)]


@pytest.fixture(scope="module")
def tokenizer():
    return reference_model.train_tokenizer(TEXT, TINY.vocabulary_size)


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return training.encode(TEXT, tokenizer)


@pytest.fixture(autouse=True)
def one_thread():
    with torch_threads(1):
        yield


def fit(tokenizer, tokens, scratch, seed=1):
    network = reference_model.build(TINY, tokenizer, seed)
    history = training.fit(network, tokens, tokens, TINY, seed=seed, scratch=scratch)
    return network.state_dict(), history


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_any_text_survives_the_tokenizer_and_documents_end_with_its_end_token(tokenizer, tokens):
    text = "naïve\tcafé — 東京 \U0001f9ea\n  def f(): pass"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    ends = np.flatnonzero(tokens == tokenizer.eos_token_id)
    assert (len(ends), ends[-1]) == (len(TEXT), len(tokens) - 1)


def test_the_balance_loss_is_least_for_even_use_and_pushes_towards_neglected_experts():
    # each token prefers one expert, all experts equally often; and one expert for all
    even, one_sided = 50 * torch.eye(4).repeat(3, 1), torch.zeros(12, 4)
    one_sided[:, 2] = 50
    for logits, expected in ((even, 1.0), (one_sided, 4.0)):
        torch.testing.assert_close(reference_model.balance_loss((logits,), 1), torch.tensor(expected))
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(6, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(reference_model.balance_loss((logits,), 2), logits)
    assert gradient[:, 0].sum() > 0 > gradient[:, 3].sum()


def test_the_learning_rate_warms_up_and_falls_to_nearly_zero():
    settings = ReferenceSettings()
    rates = [training.learning_rate(settings, step) for step in range(training.num_steps(settings))]
    peak = int(np.argmax(rates))
    assert rates[peak] == pytest.approx(settings.learning_rate)
    assert rates == sorted(rates[:peak]) + sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.01 * settings.learning_rate


@given(st.integers(0, 200))
def test_an_epoch_shows_every_sequence_once(step):
    tokens = np.arange(16 * 9, dtype=np.int64)  # 8 whole sequences from any offset
    epoch = [training.batch_BS(tokens, TINY, 5, 2 * (step // 2) + half).numpy() for half in (0, 1)]
    starts = sorted(int(sequence[0]) for batch in epoch for sequence in batch)
    assert np.diff(starts).tolist() == [16] * 7
    np.testing.assert_array_equal(training.batch_BS(tokens, TINY, 5, step), epoch[step % 2])


def test_training_learns_repeats_to_the_bit_and_goes_on_after_an_interruption(tokenizer, tokens, tmp_path, monkeypatch):
    first, history = fit(tokenizer, tokens, tmp_path / "one")
    losses = [loss for loss in history.validation_loss if loss is not None]
    assert len(losses) == TINY.validations
    assert losses[-1] < math.log(TINY.vocabulary_size) - 0.5
    assert not same(first, fit(tokenizer, tokens, tmp_path / "two", seed=2)[0])
    monkeypatch.setattr(training, "_CHECKPOINT_STEPS", 5)
    step, done = training._train_step, []

    def counted(*args):
        done.append(args[-1])
        if len(done) == 9:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(training, "_train_step", counted)
    with pytest.raises(KeyboardInterrupt):
        fit(tokenizer, tokens, tmp_path / "broken")
    resumed, resumed_history = fit(tokenizer, tokens, tmp_path / "broken")
    assert done[9] == 5, "where the last checkpoint was"
    assert (same(first, resumed), resumed_history) == (True, history)


def test_a_text_too_short_to_train_on_is_named(tokenizer, tokens, tmp_path):
    with pytest.raises(InputError, match=r"10 training and .* do not fill sequences of 16"):
        training.fit(reference_model.build(TINY, tokenizer, 1), tokens[:10], tokens, TINY, seed=1, scratch=tmp_path)


def test_validation_is_the_mean_over_held_out_tokens(tokenizer, tokens):
    network = reference_model.build(TINY, tokenizer, 1)
    batches = training.validation_batches(tokens, TINY)
    assert sum(batch.numel() for batch in batches) == TINY.validation_tokens
    rows = torch.cat(batches)
    losses = [torch.nn.functional.cross_entropy(network(row[None]).logits[0, :-1], row[1:]).item() for row in rows]
    assert training.validate(network, tokens, TINY) == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_load_counts_what_the_routers_chose(tokenizer, tokens):
    network = reference_model.build(TINY, tokenizer, 1)
    batches = training.validation_batches(tokens, TINY)
    counts, chosen = expert_load(network, batches), []
    assert counts.sum(axis=1).tolist() == [TINY.validation_tokens * TINY.top_k] * 2
    network.model.layers[1].mlp.gate.register_forward_hook(lambda _m, _i, out: chosen.append(out[2]))
    network(torch.cat(batches))
    np.testing.assert_array_equal(counts[0], torch.bincount(torch.cat(chosen).flatten(), minlength=8))
    summary = load_summary(np.array([[5, 5, 5, 5], [20, 0, 0, 0]]), first_layer=3)
    even, one_sided = ({"entropy_bits": bits, "dead_experts": dead} for bits, dead in ((2.0, 0), (0.0, 3)))
    assert summary["layers"] == {"3": even, "4": one_sided}
    assert (summary["max_entropy_bits"], summary["dead_experts"]) == (2.0, 3)


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match=r"reference\.top_k \(9\) exceeds num_experts \(8\)"):
        ReferenceSettings(num_experts=8, top_k=9)
    with pytest.raises(ValueError, match="multiple of 4 x attention_heads"):
        ReferenceSettings(hidden_size=100, attention_heads=3)
