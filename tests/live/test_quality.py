import numpy as np
import pytest
import torch

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.errors import InputError
from moe_beyond.intervals import Resamples
from moe_beyond.live.decoding import Decoded
from moe_beyond.live.quality import TokenQuality, _tail, measure
from moe_beyond.live.quantiser import INT8, TERNARY
from moe_beyond.live.session import Case
from moe_beyond.simulator.policies.on_demand import Lru
from tests.live.live_case import LiveCase
from tests.live.test_precisions import quantise_in_place

PREFILL = 1


@pytest.fixture
def case(tmp_path):
    return LiveCase.of("mixtral", tmp_path / "store")


def measured(case, *cases):
    table = measure(
        case.model,
        case.tokenizer,
        case.store,
        cases,
        case.prompts,
        num_prefill=PREFILL,
        capacity_experts=12,
        seed=1,
    )
    return table.rows(named=True)


def probabilities(case):
    """Of each text's tokens from the prefill on, read all at once."""
    with torch.inference_mode():
        logits = [case.model(torch.tensor([text.token_ids])).logits[0, PREFILL:-1] for text in case.prompts]
    exponents = np.exp(torch.cat(logits).double().numpy())
    return exponents / exponents.sum(axis=1, keepdims=True)


def test_figures_are_those_of_whole_forwards(case):
    lossless, eight, ternary = measured(
        case, Case(Lru()), Case(Lru(), levels_V=(INT8,), name="8 bits"), Case(Lru(), levels_V=(TERNARY,))
    )
    assert lossless["kl_p99"] < 1e-9
    assert (lossless["top1_agreement"], lossless["weight_given_up"]) == (1, 0)
    assert lossless["perplexity"] == pytest.approx(lossless["perplexity_full"], rel=1e-5)
    assert (eight["policy"], ternary["policy"]) == ("8 bits", "lru")
    assert lossless["kl"] < eight["kl"] < ternary["kl"] <= ternary["kl_high"]

    full_TV = probabilities(case)
    quantise_in_place(case, np.full((3, 8), TERNARY))
    low_TV = probabilities(case)
    next_T = [token for text in case.prompts for token in text.token_ids[PREFILL + 1 :]]
    divergence_T = np.sum(full_TV * np.log(full_TV / low_TV), axis=1)
    assert ternary["kl"] == pytest.approx(divergence_T.mean(), rel=1e-3)
    assert ternary["kl_p99"] == pytest.approx(divergence_T.max(), rel=1e-3)
    assert ternary["top1_agreement"] == np.mean(full_TV.argmax(axis=1) == low_TV.argmax(axis=1))
    for name, probability_TV in (("perplexity", low_TV), ("perplexity_full", full_TV)):
        chosen_T = probability_TV[np.arange(len(next_T)), next_T]
        assert ternary[name] == pytest.approx(np.prod(chosen_T) ** (-1 / len(next_T)), rel=1e-3)


def test_a_model_without_its_experts_is_compared_with_what_the_store_holds(case):
    (expected,) = measured(case, Case(Lru(), levels_V=(TERNARY,)))
    for layer in moe_layers(case.model):
        layer.experts.to("meta")
    (found,) = measured(case, Case(Lru(), levels_V=(TERNARY,)))
    assert found["kl"] == pytest.approx(expected["kl"], rel=1e-3)


def test_divergence_is_of_the_full_model_s_distribution():
    text = torch.arange(6)
    full = Decoded("p", text, 1, [torch.zeros(5)] * 5)
    skewed = torch.log(torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1]))
    quality = TokenQuality.of(full, Decoded("p", text, 1, [skewed] * 5))
    assert quality.divergence == pytest.approx([0.2 * np.log(0.2 / 0.6) + 0.8 * np.log(0.2 / 0.1)] * 3)
    assert quality.loss == pytest.approx([-np.log(0.1)] * 3)


def test_the_tail_is_what_99_percent_do_not_exceed():
    values = np.random.default_rng(0).permutation(200).astype(float)
    tail = _tail([values[:120], values[120:]], Resamples.draw(2, 50, 1))
    assert tail.value == 197
    assert tail.low <= 197 <= tail.high


def test_a_text_without_tokens_to_count_is_refused(case):
    case.prompts[1:] = [case.prompts[1].__class__("short", "d", False, (3,) * (PREFILL + 2))]
    with pytest.raises(InputError, match="text short: 3 tokens; give at least 4"):
        measured(case, Case(Lru()))
