"""The network of the MoE-Beyond paper (arXiv 2508.17137) as a baseline: what its design gives on our training data.

An encoder over one row per (layer, token), layer-major, with no positions: token features beside a layer's embedding,
which is random and never trained. In its published form no mask hides later tokens, so it predicts only once the whole
prompt is known: that variant is named `leaky`. The `causal` one hides them, and is what a device could run.

Two things differ from the published code. The traces carry no embedding table of the traced model, so an embedding of
our own of the same width, of known tokens and letters, takes its place and is trained. Rows are limited to 512 in both,
but where the paper drops the tokens that do not fit, a new window begins here: every token gets a prediction.

Shape suffixes: B batch, T tokens of a window, L MoE layers, E experts, G n-grams, R rows = L * T, F token features,
D width.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moe_beyond.data.features import token_features
from moe_beyond.data.tokens import TokenEncoder
from moe_beyond.errors import InputError
from moe_beyond.files import replacing
from moe_beyond.predictor.base import Floats, sigmoid
from moe_beyond.traces.schema import Trace, TraceMetadata

Variant = Literal["causal", "leaky"]
VARIANTS: tuple[Variant, ...] = ("causal", "leaky")


@dataclass(frozen=True)
class PublishedShape:
    """Sizes of the published network; the defaults are the paper's."""

    num_layers: int
    num_experts: int
    num_tokens: int
    letter_buckets: int
    width: int = 512
    depth: int = 4
    heads: int = 8
    feed_forward: int = 2048
    token_width: int = 2048
    max_rows: int = 512

    @property
    def window(self) -> int:
        """Tokens whose rows fit, at least one."""
        return max(1, self.max_rows // self.num_layers)


class PublishedNetwork(nn.Module):
    """Logits of every layer of each token of a window."""

    layer_embedding_LD: Tensor

    def __init__(self, shape: PublishedShape, variant: Variant, dropout: float = 0.1) -> None:
        super().__init__()
        self.shape, self.variant = shape, variant
        self.token_embedding = nn.Embedding(shape.num_tokens, shape.token_width)
        self.letter_embedding = nn.Embedding(shape.letter_buckets, shape.token_width, padding_idx=0)
        self.register_buffer("layer_embedding_LD", torch.randn(shape.num_layers, shape.width))
        self.rows_in = nn.Linear(shape.token_width + shape.width, shape.width)
        layer = nn.TransformerEncoderLayer(shape.width, shape.heads, shape.feed_forward, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, shape.depth, enable_nested_tensor=False)
        self.head = nn.Sequential(
            nn.Linear(shape.width, shape.width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(shape.width, shape.num_experts),
        )

    def forward(self, tokens_BT: Tensor, letters_BTG: Tensor, real_BT: Tensor) -> Tensor:
        """One window of each prompt of a batch.

        Args:
            tokens_BT: int64, token indices, 0 unknown.
            letters_BTG: int64, n-gram buckets, 0 padding.
            real_BT: bool, False where a window is padded.

        Returns:
            Logits [B, T, L, E].
        """
        batch, tokens = tokens_BT.shape
        layers = self.shape.num_layers
        count_BT1 = (letters_BTG > 0).sum(dim=2, keepdim=True).clamp(min=1)
        token_BTF = self.token_embedding(tokens_BT) + self.letter_embedding(letters_BTG).sum(dim=2) / count_BT1.sqrt()
        token_BLTF = token_BTF[:, None].expand(-1, layers, -1, -1)
        layer_BLTD = self.layer_embedding_LD[None, :, None].expand(batch, -1, tokens, -1)
        rows_BRD = self.rows_in(torch.cat([token_BLTF, layer_BLTD], dim=-1).flatten(1, 2))
        hidden_RR = self._later_rows(tokens, tokens_BT.device) if self.variant == "causal" else None
        padded_BR = ~real_BT[:, None].expand(-1, layers, -1).flatten(1)
        encoded_BRD = self.encoder(rows_BRD, mask=hidden_RR, src_key_padding_mask=padded_BR)
        logits_BRE = self.head(encoded_BRD)
        return torch.as_tensor(logits_BRE.view(batch, layers, tokens, -1).transpose(1, 2))

    def _later_rows(self, tokens: int, device: torch.device) -> Tensor:
        """True where a row's token comes before the other row's token, which it must not see."""
        token_R = torch.arange(tokens, device=device).repeat(self.shape.num_layers)
        return token_R[None, :] > token_R[:, None]


@dataclass(frozen=True)
class PublishedPredictor:
    """A trained published network; implements `predictor.base.Predictor`.

    The leaky variant breaks that protocol's promise of causality, as the paper does, and its name says so.

    Attributes:
        network: In evaluation mode.
        encoder: Turns token strings into its inputs.
        trained_on: The traced model, whose layers and experts the network predicts.
    """

    network: PublishedNetwork
    encoder: TokenEncoder
    trained_on: TraceMetadata

    @property
    def name(self) -> str:
        """Name in tables and plots."""
        return f"published network, {self.network.variant}"

    def probabilities_TLE(self, trace: Trace) -> Floats:
        """Probability of each expert, window by window, float32 [T, L, E].

        Raises:
            InputError: The trace is of another model.
        """
        self.trained_on.require_same_model(trace.metadata, "trace to predict")
        features = token_features(trace, self.encoder)
        predictions = []
        for start, end in zip(trace.prompt_offsets[:-1].tolist(), trace.prompt_offsets[1:].tolist(), strict=True):
            for first in range(start, end, self.network.shape.window):
                part = slice(first, min(first + self.network.shape.window, end))
                tokens_BT = torch.from_numpy(features.tokens_T[part])[None]
                letters_BTG = torch.from_numpy(features.letters_TG[part])[None]
                with torch.no_grad():
                    logits_BTLE = self.network(tokens_BT, letters_BTG, torch.ones_like(tokens_BT, dtype=torch.bool))
                predictions.append(sigmoid(logits_BTLE[0].numpy()))
        return np.concatenate(predictions)

    def save(self, directory: Path) -> None:
        """Write `weights.safetensors` and `network.json`; replaces `directory`."""
        description = {
            "variant": self.network.variant,
            "shape": asdict(self.network.shape),
            "letter_buckets": self.encoder.letter_buckets,
            "trained_on": self.trained_on.model_dump(),
            "known_tokens": self.encoder.known,
        }
        with replacing(directory) as temporary:
            temporary.mkdir()
            save_file(
                {k: v.contiguous() for k, v in self.network.state_dict().items()}, temporary / "weights.safetensors"
            )
            (temporary / "network.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> PublishedPredictor:
        """Read what `save` wrote.

        Raises:
            InputError: There is none.
        """
        try:
            description = json.loads((directory / "network.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(
                f"{directory}: no network.json; run the train stage with train.published_epochs above 0"
            ) from error
        network = PublishedNetwork(PublishedShape(**description["shape"]), description["variant"])
        network.load_state_dict(load_file(directory / "weights.safetensors"))
        encoder = TokenEncoder(tuple(description["known_tokens"]), description["letter_buckets"])
        return cls(network.eval(), encoder, TraceMetadata.model_validate(description["trained_on"]))


def load_variants(directory: Path) -> list[PublishedPredictor]:
    """The variants that the train stage left in `directory`, none where it trained none."""
    return [PublishedPredictor.load(directory / variant) for variant in VARIANTS if (directory / variant).is_dir()]
