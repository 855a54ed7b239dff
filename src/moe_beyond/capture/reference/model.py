"""The reference model's shape and its tokenizer: DeepSeek-V2 in small, as transformers builds it from a config.

Architecture after DeepSeek-V2 (arXiv 2405.04434): latent attention, a first dense layer, then layers of routed and
shared experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from moe_beyond.capture.reference.corpus import Document
    from moe_beyond.capture.reference.settings import ReferenceSettings

END = "<|end|>"
"""Ends a document; also the padding token."""


def train_tokenizer(documents: list[Document], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `vocabulary_size` entries, learnt from `documents`; any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, padding_side="left")


def build(settings: ReferenceSettings, tokenizer: PreTrainedTokenizerFast, seed: int) -> DeepseekV2ForCausalLM:
    """A randomly initialised model; the same seed gives the same weights."""
    head_width = settings.hidden_size // settings.attention_heads
    config = DeepseekV2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=4 * settings.hidden_size,
        num_hidden_layers=settings.dense_layers + settings.moe_layers,
        first_k_dense_replace=settings.dense_layers,
        num_attention_heads=settings.attention_heads,
        q_lora_rank=None,
        kv_lora_rank=settings.hidden_size // 2,
        qk_nope_head_dim=head_width,
        qk_rope_head_dim=head_width // 2,
        v_head_dim=head_width,
        n_routed_experts=settings.num_experts,
        num_experts_per_tok=settings.top_k,
        n_shared_experts=settings.shared_experts,
        moe_intermediate_size=settings.expert_width,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DeepseekV2ForCausalLM(config)
    # all heads see one group of experts at once: grouped matrix products train several times faster than a loop
    model.set_experts_implementation("grouped_mm")
    return model


def balance_loss(router_logits: tuple[torch.Tensor, ...], top_k: int) -> torch.Tensor:
    """Load-balance loss of the Switch Transformer (arXiv 2101.03961, eq. 4), the mean over layers; 1 when balanced.

    transformers trains DeepSeek-V2 without one, and then a fifth to a third of the experts die.

    Args:
        router_logits: One float tensor [tokens, experts] a MoE layer.
        top_k: Experts per token.
    """
    losses = []
    for logits in router_logits:
        tokens, experts = logits.shape
        probabilities = logits.float().softmax(dim=-1)
        chosen = probabilities.topk(top_k, dim=-1).indices
        load = torch.bincount(chosen.flatten(), minlength=experts) / (tokens * top_k)
        losses.append(experts * (load * probabilities.mean(dim=0)).sum())
    return torch.stack(losses).mean()
