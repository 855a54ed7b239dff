"""Losses of a fit: how wrong logits are about which K experts a router chose.

Each is a mean over layers and tokens, divided by the number of experts, so that their sizes are alike. Only `bce`
gives logits that are log-odds before calibration.

Shape suffixes: B batch, T tokens of a window, L MoE layers, N tokens, E experts, K top-k, J as many wrong experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def binary_cross_entropy(logits_LNE: Tensor, experts_LNK: Tensor) -> Tensor:
    """Element-wise, softplus(x) - x * y, without a tensor of targets: y is 1 K times."""
    positive_LN = logits_LNE.gather(-1, experts_LNK).sum(-1)
    loss_LN = functional.softplus(logits_LNE).sum(-1) - positive_LN
    return loss_LN.mean() / logits_LNE.shape[-1]


def softmax_cross_entropy(logits_LNE: Tensor, experts_LNK: Tensor) -> Tensor:
    """Of the softmax over a layer's experts, each of the K chosen ones a target of its own."""
    positive_LN = logits_LNE.gather(-1, experts_LNK).sum(-1)
    loss_LN = logits_LNE.logsumexp(-1) * experts_LNK.shape[-1] - positive_LN
    return loss_LN.mean() / logits_LNE.shape[-1]


def ranking(logits_LNE: Tensor, experts_LNK: Tensor) -> Tensor:
    """Softplus of the margin between each chosen expert and each of the K highest among the others."""
    chosen_LNK = logits_LNE.gather(-1, experts_LNK)
    others_LNE = logits_LNE.scatter(-1, experts_LNK, -torch.inf)
    others_LNJ = others_LNE.topk(min(experts_LNK.shape[-1], logits_LNE.shape[-1] - experts_LNK.shape[-1])).values
    loss_LN = functional.softplus(others_LNJ[..., None, :] - chosen_LNK[..., :, None]).mean(dim=(-1, -2))
    return loss_LN.mean() * experts_LNK.shape[-1] / logits_LNE.shape[-1]


LOSSES: dict[str, Loss] = {"bce": binary_cross_entropy, "softmax": softmax_cross_entropy, "ranking": ranking}
"""By the name that `train.loss` gives."""


LATER_DECAY = 0.5
"""Of the tokens after one, each counts so much less than the one before it; 0.4 to 0.9 were tried."""


def later_loss(logits_BTLE: Tensor, experts_BTLK: Tensor, real_BT: Tensor) -> Tensor:
    """Binary cross-entropy of later use: against the share of the tokens after this one that use an expert.

    Tokens beyond the window are not counted, so a token near its end says less and weighs less.
    """
    share_BTLE, weight_BT = later_use(experts_BTLK, real_BT, logits_BTLE.shape[-1])
    loss_BTLE = functional.binary_cross_entropy_with_logits(logits_BTLE.float(), share_BTLE, reduction="none")
    loss_BT = loss_BTLE.sum(-1).mean(-1) * weight_BT
    return loss_BT.sum() / weight_BT.sum().clamp(min=1e-6) / logits_BTLE.shape[-1]


def later_use(experts_BTLK: Tensor, real_BT: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Shares of a window's later tokens that use each expert [B, T, L, E], and how much was seen of them [B, T]."""
    used_BTLE = torch.zeros(*experts_BTLK.shape[:3], num_experts, device=experts_BTLK.device)
    used_BTLE = used_BTLE.scatter(3, experts_BTLK, 1.0)
    at_T = torch.arange(real_BT.shape[1], device=real_BT.device)
    ahead_TT = at_T[None, :] - at_T[:, None] - 1
    weight_TT = torch.where(ahead_TT >= 0, (1 - LATER_DECAY) * LATER_DECAY ** ahead_TT.clamp(min=0).float(), 0.0)
    weight_BTT = weight_TT * real_BT[:, None, :]
    weight_BT = weight_BTT.sum(-1) * real_BT
    summed_BTY = weight_BTT @ used_BTLE.flatten(2)
    return (summed_BTY / weight_BTT.sum(-1, keepdim=True).clamp(min=1e-6)).view(used_BTLE.shape), weight_BT


def next_token_recall(logits_BTLE: Tensor, experts_BTLK: Tensor, real_BT: Tensor) -> Tensor:
    """Share of the next token's experts among the K of largest later use, mean over tokens that have a next one."""
    both_BT = real_BT[:, :-1] & real_BT[:, 1:]
    if not both_BT.any():
        return logits_BTLE.new_zeros(())
    top_NLK = logits_BTLE[:, :-1][both_BT].topk(experts_BTLK.shape[-1], dim=-1).indices
    next_NLK = experts_BTLK[:, 1:][both_BT]
    return (top_NLK[..., :, None] == next_NLK[..., None, :]).any(-1).float().mean()
