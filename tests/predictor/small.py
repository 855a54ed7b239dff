"""Settings under which a predictor trains in a second, and a shape small enough to look at."""

from moe_beyond.predictor.shape import NetworkShape
from moe_beyond.training.settings import TrainSettings

_WIDTHS = {"layer_width": 16, "layer_hidden": 16, "embedding_width": 16}
SETTINGS = TrainSettings(batch_size=8, window=8, letter_buckets=64, learning_rate=0.01, dropout=0.0, **_WIDTHS)

_MODEL = {"num_layers": 3, "num_experts": 8, "top_k": 2}
_TOKENS = {"num_tokens": 50, "letter_buckets": 64, "embedding_width": 10}
_TOKEN_STEP = {"width": 16, "depth": 2, "heads": 2, "window": 6}
_LAYER_STEP = {"horizon": 2, "reach": 2, "layer_width": 12, "layer_hidden": 20}
SHAPE = NetworkShape(**_MODEL, **_TOKENS, **_TOKEN_STEP, **_LAYER_STEP)
