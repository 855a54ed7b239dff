"""Settings under which a predictor trains in a second."""

from moe_beyond.predictor.settings import TrainSettings

SETTINGS = TrainSettings(batch_size=8, window=8, letter_buckets=64, learning_rate=0.01, dropout=0.0)
