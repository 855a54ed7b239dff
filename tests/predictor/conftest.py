import dataclasses

import pytest

from moe_beyond.predictor.onnx import export_predictor
from moe_beyond.predictor.settings import ExportSettings, TrainSettings
from moe_beyond.training import Size, fit
from tests.traces_of_chance import chance_trace

SETTINGS = TrainSettings(batch_size=8, window=8, letter_buckets=64, learning_rate=0.01, dropout=0.0)


@pytest.fixture(scope="session")
def train_trace():
    return chance_trace(80, seed=1, name="train")


@pytest.fixture(scope="session")
def validation_trace():
    return chance_trace(10, seed=2, name="validation")


@pytest.fixture(scope="session")
def fitted(train_trace, validation_trace, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    return fit(train_trace, validation_trace, Size(16, 2, 2), SETTINGS, epochs=6, seed=3, scratch=scratch)


@pytest.fixture(scope="session")
def exported(fitted, validation_trace, tmp_path_factory):
    """A predictor directory, and what its export measured."""
    directory = tmp_path_factory.mktemp("models") / "predictor"
    settings = ExportSettings(parity_tokens=60, latency_repeats=10)
    return directory, export_predictor(fitted.checkpoint, directory, validation_trace, settings)


@pytest.fixture
def dataclass_replace():
    return dataclasses.replace
