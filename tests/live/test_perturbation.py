from itertools import product

import numpy as np
import pytest
import torch

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.live.perturbation import _lost_K, fit_lexi, least_loss
from tests.live.live_case import LiveCase


@pytest.mark.parametrize("architecture", ["deepseek_v2", "mixtral", "gpt_oss", "qwen3_moe"])
def test_lexi_s_numbers_sum_to_the_promised_share(architecture, tmp_path):
    case = LiveCase.of(architecture, tmp_path / "store")
    layers = moe_layers(case.model)
    for layer in layers:
        layer.experts.to("meta")
    top_k = 3 if architecture == "deepseek_v2" else 2
    top_k_L = fit_lexi(case.model, case.store, seed=1).top_k_L
    assert top_k_L.sum() == round(0.75 * top_k * len(layers))
    assert ((top_k_L >= 1) & (top_k_L <= top_k)).all()


def test_what_a_layer_loses_is_what_its_output_changes_by(tmp_path):
    case = LiveCase.of("deepseek_v2", tmp_path / "store")
    block = case.model.model.layers[2].mlp
    hidden = torch.randn(256, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        _, weights, ids = block.gate(hidden)
        order = weights.argsort(dim=1, descending=True)
        weights, ids = weights.gather(1, order), ids.gather(1, order)
        whole = block.experts(hidden, ids, weights)
        lost = [float((whole - block.experts(hidden, ids[:, :k], weights[:, :k])).norm()) for k in (1, 2, 3)]
    assert _lost_K(case.model, case.store, 1, 1) == pytest.approx(lost, rel=1e-4, abs=1e-4)


def test_the_least_total_loss_is_found():
    lost_LK = np.random.default_rng(3).random((4, 3))
    for total in range(4, 13):
        found = least_loss(lost_LK, total)
        options = [ks for ks in product((1, 2, 3), repeat=4) if sum(ks) == total]
        best = min(options, key=lambda ks: sum(lost_LK[layer, k - 1] for layer, k in enumerate(ks)))
        assert tuple(found) == best
