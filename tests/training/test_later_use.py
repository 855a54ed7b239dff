"""How often later tokens use each expert: what is learned, against a slow reference."""

import pytest
import torch

from moe_beyond.training.losses import LATER_DECAY, later_loss, later_use, next_token_recall


def drawn(lengths, tokens):
    layers, experts, top_k, seed = 2, 6, 2, 0
    draw = torch.Generator().manual_seed(seed)
    experts_BTLK = torch.rand(len(lengths), tokens, layers, experts, generator=draw).argsort(-1)[..., :top_k]
    real_BT = torch.arange(tokens)[None] < torch.tensor(lengths)[:, None]
    return experts_BTLK, real_BT


def test_shares_are_those_of_real_tokens_after_each_one():
    experts_BTLK, real_BT = drawn([5, 3, 1], 5)
    share_BTLE, weight_BT = later_use(experts_BTLK, real_BT, 6)
    for b, length in enumerate([5, 3, 1]):
        for t in range(5):
            weights = [(1 - LATER_DECAY) * LATER_DECAY ** (u - t - 1) for u in range(t + 1, length)]
            assert weight_BT[b, t].item() == pytest.approx(sum(weights) if t < length else 0)
            for layer in range(2):
                for expert in range(6):
                    used = [expert in experts_BTLK[b, u, layer].tolist() for u in range(t + 1, length)]
                    share = sum(w * u for w, u in zip(weights, used, strict=True)) / sum(weights) if weights else 0
                    assert share_BTLE[b, t, layer, expert].item() == pytest.approx(share, abs=1e-6)


def test_the_loss_is_least_at_the_shares_and_padding_says_nothing():
    experts_BTLK, real_BT = drawn([6, 4], 6)
    share_BTLE, _ = later_use(experts_BTLK, real_BT, 6)
    best = torch.logit(share_BTLE.clamp(1e-4, 1 - 1e-4))
    least = later_loss(best, experts_BTLK, real_BT)
    for change in (0.5, -0.5):
        assert later_loss(best + change, experts_BTLK, real_BT) > least
    other = torch.where(real_BT[..., None, None], experts_BTLK, torch.zeros_like(experts_BTLK))
    torch.testing.assert_close(later_loss(best, other, real_BT), least)


def test_recall_of_the_next_token():
    experts_BTLK, real_BT = drawn([4, 2], 4)
    sees_all = torch.zeros(2, 4, 2, 6).scatter(3, experts_BTLK.roll(-1, dims=1), 5.0)
    assert next_token_recall(sees_all, experts_BTLK, real_BT) == 1
    assert next_token_recall(-sees_all, experts_BTLK, real_BT) == 0
    nobody = real_BT & (torch.arange(4) == 0)
    assert next_token_recall(sees_all, experts_BTLK, nobody) == 0
