import math

import pytest
import torch

from moe_beyond.training.losses import LOSSES, binary_cross_entropy, ranking, softmax_cross_entropy

LOGITS = torch.tensor([[[2.0, 1.0, 0.0, -1.0]]])
CHOSEN = torch.tensor([[[0, 2]]])


def test_binary_cross_entropy_is_that_of_a_tensor_of_targets():
    expected = torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, torch.tensor([[[1.0, 0, 1, 0]]]))
    assert binary_cross_entropy(LOGITS, CHOSEN).item() == pytest.approx(expected.item())


def test_softmax_has_each_chosen_expert_as_a_target():
    log_shares = LOGITS.log_softmax(-1)[0, 0]
    expected = -(log_shares[0] + log_shares[2]) / 4
    assert softmax_cross_entropy(LOGITS, CHOSEN).item() == pytest.approx(expected.item())


def test_ranking_looks_at_each_pair_of_a_chosen_and_another_expert():
    margins = [1.0 - 2.0, -1.0 - 2.0, 1.0 - 0.0, -1.0 - 0.0]
    expected = sum(math.log1p(math.exp(margin)) for margin in margins) / 4 * 2 / 4
    assert ranking(LOGITS, CHOSEN).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_falls_as_the_chosen_experts_rise_and_is_finite_at_extreme_logits(name):
    logits = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    experts = torch.rand(3, 5, 8, generator=torch.Generator().manual_seed(2)).argsort(-1)[..., :2]
    better = logits.scatter_add(-1, experts, torch.full(experts.shape, 1.0))
    assert LOSSES[name](better, experts) < LOSSES[name](logits, experts)
    assert torch.isfinite(LOSSES[name](torch.tensor([[[500.0, -500.0, 500.0, 0.0]]]), CHOSEN))
