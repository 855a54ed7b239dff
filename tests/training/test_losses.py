import pytest
import torch

from moe_beyond.training.losses import LOSSES, binary_cross_entropy, ranking, softmax_cross_entropy

LOGITS = torch.tensor([[[2.0, 1.0, 0.0, -1.0]]])
CHOSEN, CHOSEN_MASK = torch.tensor([[[0, 2]]]), torch.tensor([[[True, False, True, False]]])


def test_losses_equal_their_definitions():
    """Binary over all experts; softmax with each chosen expert as a target; ranking over chosen and other experts."""
    binary = torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, torch.tensor([[[1.0, 0, 1, 0]]]))
    softmax = -LOGITS.log_softmax(-1)[CHOSEN_MASK].sum() / 4
    margins = LOGITS[~CHOSEN_MASK][None] - LOGITS[CHOSEN_MASK][:, None]
    ranked = margins.exp().log1p().mean() * 2 / 4
    for loss, expected in ((binary_cross_entropy, binary), (softmax_cross_entropy, softmax), (ranking, ranked)):
        torch.testing.assert_close(loss(LOGITS, CHOSEN), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_falls_as_the_chosen_experts_rise_and_is_finite_at_extreme_logits(name):
    logits = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    experts = torch.rand(3, 5, 8, generator=torch.Generator().manual_seed(2)).argsort(-1)[..., :2]
    better = logits.scatter_add(-1, experts, torch.full(experts.shape, 1.0))
    assert LOSSES[name](better, experts) < LOSSES[name](logits, experts)
    assert torch.isfinite(LOSSES[name](torch.tensor([[[500.0, -500.0, 500.0, 0.0]]]), CHOSEN))
