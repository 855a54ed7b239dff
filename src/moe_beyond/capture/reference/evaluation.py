"""How evenly the reference model uses its experts, on held-out text.

Shape suffixes: L MoE layers, E experts, B sequences of a batch, S tokens of a sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from transformers import DeepseekV2ForCausalLM


@torch.no_grad()
def expert_load(model: DeepseekV2ForCausalLM, batches: list[torch.Tensor]) -> npt.NDArray[np.int64]:
    """How often each expert was chosen, int64 [L, E].

    Args:
        model: The model.
        batches: Token ids, int64 [B, S] each.
    """
    model.eval()
    num_experts, top_k = model.config.n_routed_experts, model.config.num_experts_per_tok
    total = None
    for tokens_BS in batches:
        logits = model(tokens_BS, use_cache=False, output_router_logits=True).router_logits
        # greedy top-k of a softmax is the top-k of its logits
        chosen = [layer.topk(top_k, dim=-1).indices.flatten() for layer in logits]
        counts_LE = np.stack([torch.bincount(ids, minlength=num_experts).numpy() for ids in chosen])
        total = counts_LE if total is None else total + counts_LE
    assert total is not None  # noqa: S101 - there is always one batch
    return total


def load_summary(counts_LE: npt.NDArray[np.int64], first_layer: int) -> dict[str, Any]:
    """Entropy of the load in bits (at most log2 E) and number of experts never chosen, overall and per layer.

    Args:
        counts_LE: How often each expert was chosen.
        first_layer: The model's number of the first MoE layer.
    """
    shares_LE = counts_LE / counts_LE.sum(axis=1, keepdims=True)
    entropy_L = -np.where(shares_LE > 0, shares_LE * np.log2(np.where(shares_LE > 0, shares_LE, 1)), 0).sum(axis=1)
    dead_L = (counts_LE == 0).sum(axis=1)
    return {
        "entropy_bits": float(entropy_L.mean()),
        "max_entropy_bits": float(np.log2(counts_LE.shape[1])),
        "dead_experts": int(dead_L.sum()),
        "layers": {
            str(layer): {"entropy_bits": float(entropy), "dead_experts": int(dead)}
            for layer, (entropy, dead) in enumerate(zip(entropy_L, dead_L, strict=True), first_layer)
        },
    }
