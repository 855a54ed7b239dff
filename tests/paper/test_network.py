import numpy as np
import pytest
import torch

from moe_beyond.data.tokens import TokenEncoder
from moe_beyond.errors import InputError
from moe_beyond.evaluation.scores import score
from moe_beyond.network.network import num_parameters
from moe_beyond.paper.network import VARIANTS, PublishedNetwork, PublishedPredictor, PublishedShape
from moe_beyond.paper.training import fit_published
from moe_beyond.predictor.baselines import Popularity
from tests.predictor.small import SETTINGS
from tests.traces_of_chance import chance_trace

SMALL = {"width": 32, "depth": 1, "heads": 2, "feed_forward": 32, "token_width": 32, "max_rows": 30}


def predictor(variant):
    torch.manual_seed(0)
    trace = chance_trace(20)
    encoder = TokenEncoder.fit(trace, 2, 64)
    network = PublishedNetwork(PublishedShape(3, 16, encoder.num_tokens, 64, **SMALL), variant).eval()
    return PublishedPredictor(network, encoder, trace.metadata)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_leaky_variant_sees_later_tokens_as_the_papers_does_and_the_causal_one_does_not(variant):
    ours, trace = predictor(variant), chance_trace(1, seed=4)
    before = ours.probabilities_TLE(trace)
    last = min(trace.num_tokens, ours.network.shape.window) - 1
    trace.token_texts.codes_T[last] = (trace.token_texts.codes_T[last] + 1) % len(trace.token_texts.vocabulary)
    changed = (ours.probabilities_TLE(trace) != before).any(axis=(1, 2)).nonzero()[0].tolist()
    assert changed == (list(range(last + 1)) if variant == "leaky" else [last])


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_no_prediction(variant):
    network = predictor(variant).network
    tokens, letters = torch.randint(0, 10, (1, 6)), torch.randint(0, 64, (1, 6, 16))
    real = torch.ones(1, 6, dtype=torch.bool)
    whole = network(tokens[:, :4], letters[:, :4], real[:, :4])
    real[:, 4:] = False
    assert torch.allclose(network(tokens, letters, real)[:, :4], whole, atol=1e-5)


def test_no_prediction_depends_on_any_routing():
    ours, trace = predictor("leaky"), chance_trace(3, seed=4)
    before = ours.probabilities_TLE(trace)
    trace.experts_TLK[:] = (trace.experts_TLK + 1) % 16
    assert np.array_equal(ours.probabilities_TLE(trace), before)


def test_the_default_sizes_are_the_papers():
    shape = PublishedShape(26, 64, 10, 16)
    assert shape.window == 19
    network = PublishedNetwork(shape, "leaky")
    embeddings = (10 + 16) * 2048
    attention, feed_forward, norms = 4 * (512 * 512 + 512), 2 * 512 * 2048 + 2048 + 512, 4 * 512
    encoder = 4 * (attention + feed_forward + norms)
    rows_in, head = 2560 * 512 + 512, 512 * 512 + 512 + 512 * 64 + 64
    assert num_parameters(network) == embeddings + encoder + rows_in + head


def test_it_trains_and_comes_back_from_disk(train_trace, validation_trace, tmp_path):
    encoder = TokenEncoder.fit(train_trace, SETTINGS.min_token_count, SETTINGS.letter_buckets)
    shape = PublishedShape(3, 16, encoder.num_tokens, SETTINGS.letter_buckets, **SMALL)
    more = {"epochs": 6, "seed": 1, "scratch": tmp_path / "scratch", "shape": shape, "learning_rate": 3e-3}
    ours = fit_published(train_trace, validation_trace, "causal", SETTINGS, **more)
    popularity = score(Popularity.fit(train_trace), validation_trace).mean()
    assert score(ours, validation_trace).mean() > popularity + 0.2
    ours.save(tmp_path / "causal")
    loaded = PublishedPredictor.load(tmp_path / "causal")
    assert loaded.name == "published network, causal"
    assert np.array_equal(loaded.probabilities_TLE(validation_trace), ours.probabilities_TLE(validation_trace))


def test_what_does_not_belong_is_refused(tmp_path):
    with pytest.raises(InputError, match="published_epochs above 0"):
        PublishedPredictor.load(tmp_path)
    with pytest.raises(InputError, match="layer_numbers"):
        predictor("causal").probabilities_TLE(chance_trace(2, num_layers=2))
