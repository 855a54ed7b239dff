"""Losses of a fit: how wrong logits are about which K experts a router chose.

Each is a mean over layers and tokens, divided by the number of experts, so that their sizes are alike. Only `bce`
gives logits that are log-odds before calibration.

Shape suffixes: L MoE layers, N tokens, E experts, K top-k, J as many wrong experts.
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
