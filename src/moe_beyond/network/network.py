"""The token step: a small causal transformer over tokens that predicts all layers at once.

Its inputs ahead of a token are the token itself, the routing of the token before and of the last time that the same
string stood in the prompt, and, through its state, earlier tokens.
Attention looks back over a fixed window and positions enter only as distances, so the state needs no counter: keys and
values of the last `window - 1` tokens. Beside its prediction it gives a context, from which the layer step goes on, and
how often the tokens to come will use each expert, by which caches evict.

Shape suffixes: B batch, T tokens of this call, S tokens in the state (0 to window - 1), L MoE layers, E experts,
M = 2 x top-k, G n-grams, D width, W width of the layer step, N blocks, H heads, C = D / H channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_beyond.predictor.shape import NetworkShape


class Block(nn.Module):
    """Pre-norm transformer block; attention over a window with a learned bias per distance and head."""

    def __init__(self, width: int, heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.distance_bias = nn.Parameter(torch.zeros(heads, window))
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, keys_BSD: Tensor, values_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the block's output and the new keys and values of the last window - 1 tokens."""
        queries_BTD, keys_BTD, values_BTD = self.queries_keys_values(self.attention_norm(x_BTD)).chunk(3, dim=-1)
        keys_BSD = torch.cat([keys_BSD, keys_BTD], dim=1)
        values_BSD = torch.cat([values_BSD, values_BTD], dim=1)
        attended_BTD = self._attend(queries_BTD, keys_BSD, values_BSD)
        x_BTD = x_BTD + self.dropout(self.attention_out(attended_BTD))
        x_BTD = x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))
        return x_BTD, keys_BSD[:, -(self.window - 1) :], values_BSD[:, -(self.window - 1) :]

    def _attend(self, queries_BTD: Tensor, keys_BSD: Tensor, values_BSD: Tensor) -> Tensor:
        num_queries, num_keys, width = queries_BTD.shape[1], keys_BSD.shape[1], queries_BTD.shape[2]
        channels = width // self.heads

        def split(x: Tensor) -> Tensor:
            return x.view(x.shape[0], x.shape[1], self.heads, channels).transpose(1, 2)

        # query i stands at i + (keys - queries): the state comes before it
        query_at_T = torch.arange(num_queries, device=queries_BTD.device) + (num_keys - num_queries)
        distance_TS = query_at_T[:, None] - torch.arange(num_keys, device=queries_BTD.device)[None, :]
        visible_TS = (distance_TS >= 0) & (distance_TS < self.window)
        bias_HTS = self.distance_bias[:, distance_TS.clamp(0, self.window - 1)]
        scores_BHTS = split(queries_BTD) @ split(keys_BSD).transpose(-1, -2) * channels**-0.5 + bias_HTS
        scores_BHTS = scores_BHTS.masked_fill(~visible_TS, -1e9)
        mixed_BHTC: Tensor = scores_BHTS.softmax(dim=-1) @ split(values_BSD)
        return mixed_BHTC.transpose(1, 2).flatten(2)


class TokenStep(nn.Module):
    """Logits of every expert of every layer for each token, ahead of the token's first layer."""

    def __init__(self, shape: NetworkShape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.token_embedding = nn.Embedding(shape.num_tokens, shape.embedding_width)
        self.letter_embedding = nn.Embedding(shape.letter_buckets, shape.embedding_width, padding_idx=0)
        self.embedding_in = nn.Linear(shape.embedding_width, shape.width)
        self.previous_in = nn.Linear(shape.num_layers * shape.num_experts, shape.width, bias=False)
        self.repeated_in = nn.Linear(shape.num_layers * shape.num_experts, shape.width, bias=False)
        self.input_norm = nn.LayerNorm(shape.width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads, shape.window, dropout) for _ in range(shape.depth))
        self.output_norm = nn.LayerNorm(shape.width)
        self.output = nn.Linear(shape.width, shape.num_layers * shape.num_experts)
        self.context = nn.Linear(shape.width, shape.layer_width)
        self.later = nn.Linear(shape.width, shape.num_layers * shape.num_experts)
        nn.init.normal_(self.token_embedding.weight, std=0.5)
        nn.init.normal_(self.letter_embedding.weight, std=0.5)
        nn.init.zeros_(self.letter_embedding.weight[0])

    def set_class_prior(self, popularity_LE: Tensor) -> None:
        """Start from the training split's popularity: without it, the first epochs learn that most experts are idle."""
        prior = popularity_LE.clamp(1e-4, 1 - 1e-4)
        with torch.no_grad():
            for head in (self.output, self.later):
                head.bias.copy_(torch.log(prior / (1 - prior)).flatten())

    def empty_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """State ahead of a prompt's first token: keys and values, each [B, N, 0, D]."""
        empty = torch.zeros(batch, self.shape.depth, 0, self.shape.width)
        # two tensors: torch.export treats one tensor given twice as one input
        return empty, empty.clone()

    def forward(
        self, tokens_BT: Tensor, letters_BTG: Tensor, previous_BTLM: Tensor, keys_BNSD: Tensor, values_BNSD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """One step over T tokens.

        Args:
            tokens_BT: int64, token indices, 0 unknown.
            letters_BTG: int64, n-gram buckets, 0 padding.
            previous_BTLM: int64, K experts of the token before, then K of the last time that the same string stood in
                the prompt; num_experts where there is none.
            keys_BNSD: Keys of earlier tokens.
            values_BNSD: Values of earlier tokens.

        Returns:
            Logits [B, T, L, E]; the new keys and values with S = min(S + T, window - 1); the context [B, T, W] of each
            token, the layer step's state ahead of the token's first layer; logits [B, T, L, E] of later use: the share
            of the tokens after this one that use an expert, each counting half as much as the one before it.
        """
        x_BTD = self._embed(tokens_BT, letters_BTG, previous_BTLM)
        new_keys, new_values = [], []
        for index, block in enumerate(self.blocks):
            x_BTD, keys_BSD, values_BSD = block(x_BTD, keys_BNSD[:, index], values_BNSD[:, index])
            new_keys.append(keys_BSD)
            new_values.append(values_BSD)
        x_BTD = self.output_norm(x_BTD)
        by_expert = (*tokens_BT.shape, self.shape.num_layers, self.shape.num_experts)
        logits_BTLE, later_BTLE = self.output(x_BTD).view(by_expert), self.later(x_BTD).view(by_expert)
        keys_BNSD, values_BNSD = torch.stack(new_keys, dim=1), torch.stack(new_values, dim=1)
        return logits_BTLE, keys_BNSD, values_BNSD, self.context(x_BTD), later_BTLE

    def _embed(self, tokens_BT: Tensor, letters_BTG: Tensor, previous_BTLM: Tensor) -> Tensor:
        count_BT1 = (letters_BTG > 0).sum(dim=2, keepdim=True).clamp(min=1)
        string_BTD = self.token_embedding(tokens_BT) + self._letters(letters_BTG) / count_BT1.sqrt()
        previous_BTLK, repeated_BTLK = previous_BTLM.chunk(2, dim=3)
        x_BTD = (
            self.embedding_in(string_BTD)
            + self.previous_in(one_hot_routing(previous_BTLK, self.shape.num_experts))
            + self.repeated_in(one_hot_routing(repeated_BTLK, self.shape.num_experts))
        )
        return torch.as_tensor(self.dropout(self.input_norm(x_BTD)))

    def _letters(self, letters_BTG: Tensor) -> Tensor:
        """Sum of the n-grams' embeddings."""
        if not self.training:
            return torch.as_tensor(self.letter_embedding(letters_BTG).sum(dim=2))
        # the same, several times faster both ways; not for ONNX
        sums = functional.embedding_bag(letters_BTG.flatten(0, 1), self.letter_embedding.weight, mode="sum")
        return torch.as_tensor(sums.unflatten(0, letters_BTG.shape[:2]))


def one_hot_routing(experts_BTLK: Tensor, num_experts: int) -> Tensor:
    """Which experts are listed, as float [B, T, L * E]; the id `num_experts` stands for none."""
    experts_BTLX = torch.zeros(*experts_BTLK.shape[:3], num_experts + 1, device=experts_BTLK.device)
    experts_BTLX = experts_BTLX.scatter(3, experts_BTLK, 1.0)
    return experts_BTLX[..., :num_experts].flatten(2)


def num_parameters(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
