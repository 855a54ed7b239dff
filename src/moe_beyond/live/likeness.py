"""Which experts of a layer are alike, measured: how far their outputs for the same hidden states lie apart.

Shape suffixes: T tokens, L MoE layers, H hidden size, E experts in a layer, P prompts, O = T * H values that
an expert gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from moe_beyond.capture.hooks import RoutingRecorder
from moe_beyond.live.dense_model import fused_layers
from moe_beyond.simulator.policies.substitution import Substitution

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from moe_beyond.capture.prompts import EncodedPrompt


def measured_substitution(model: PreTrainedModel, prompts: Sequence[EncodedPrompt], tokens: int = 256) -> Substitution:
    """Substitution by the experts' own outputs, as SMoE has it (arXiv 2508.18983), in place of usage in a trace.

    Every expert of a layer reads what the layer read of these prompts. Two are the more alike the smaller the squared
    distance of their outputs is: what a replacement adds to the layer's error for each unit of weight.

    Args:
        model: In evaluation mode, its experts in memory.
        prompts: Of the training split.
        tokens: How many of their tokens are read at most.

    Raises:
        InputError: The model has no experts, or a list of modules for them.
    """
    layers = fused_layers(model)
    read_PTLH, left = [], tokens
    with torch.inference_mode(), RoutingRecorder(layers, "gates") as recorder:
        for prompt in prompts:
            if left <= 0:
                break
            ids_1T = torch.tensor([prompt.token_ids[:left]], device=model.device)
            left -= ids_1T.shape[1]
            model.base_model(input_ids=ids_1T, use_cache=False)
            inputs_1TLH = recorder.take(1).gate_inputs_BCYD
            assert inputs_1TLH is not None  # noqa: S101 - asked for
            read_PTLH.append(inputs_1TLH[0])
    hidden_TLH = torch.cat(read_PTLH)
    likeness_LEE = np.empty((len(layers), layers[0].num_experts, layers[0].num_experts))
    with torch.inference_mode():
        for index, layer in enumerate(layers):
            hidden_TH = hidden_TLH[:, index].to(model.device, model.dtype)
            ones_T1 = torch.ones_like(hidden_TH[:, :1])
            outputs = [
                layer.experts(hidden_TH, torch.full_like(ones_T1, expert, dtype=torch.long), ones_T1).double().flatten()
                for expert in range(layer.num_experts)
            ]
            outputs_EO = torch.stack(outputs)
            likeness_LEE[index] = -torch.cdist(outputs_EO, outputs_EO).cpu().numpy()
    return Substitution.of_likeness(likeness_LEE)
