"""Settings of the whole test run."""

import os
import shutil

import pytest
from hypothesis import settings

from moe_beyond.numerics import pin
from tests.traces_of_chance import chance_trace

# the first call of a compiled function takes seconds
settings.register_profile("same", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("new", deadline=None, max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "100")))
# what every change must pass tries the same examples each time; `make test-slow` draws new ones
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
# as the stages do; else two fits can differ in the last bit by where their memory lies
pin(os.environ, "portable")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

VARIABLES = "MLFLOW_TRACKING_URI MLFLOW_EXPERIMENT_NAME DVC_ROOT DVC_EXP_NAME MOE_BEYOND_GATE LOCAL_RANK"


@pytest.fixture(scope="session")
def train_trace():
    return chance_trace(80, seed=1, name="train")


@pytest.fixture(scope="session")
def validation_trace():
    return chance_trace(10, seed=2, name="validation")


@pytest.fixture(scope="session")
def fitted(train_trace, validation_trace, tmp_path_factory):
    """A predictor trained for a second."""
    from moe_beyond.training.fit import fit  # noqa: PLC0415 - tests that need no model start at once
    from moe_beyond.training.size import Size  # noqa: PLC0415
    from tests.predictor.small import SETTINGS  # noqa: PLC0415

    scratch = tmp_path_factory.mktemp("scratch")
    return fit(train_trace, validation_trace, Size(16, 2, 2), SETTINGS, epochs=6, seed=3, scratch=scratch)


@pytest.fixture(scope="session")
def exported(fitted, train_trace, validation_trace, tmp_path_factory):
    """A predictor directory, and what is known of it."""
    from moe_beyond.network.export import export_predictor  # noqa: PLC0415
    from moe_beyond.network.settings import ExportSettings  # noqa: PLC0415

    directory = tmp_path_factory.mktemp("models") / "predictor"
    settings = ExportSettings(parity_tokens=60, latency_repeats=10)
    fitted_on = {"train": train_trace, "validation": validation_trace}
    return directory, export_predictor(fitted.checkpoint, directory, fitted_on, settings)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A database that MLflow has filled with its tables, which takes seconds; and the experiment."""
    import mlflow  # noqa: PLC0415 - tests that need none start at once

    folder = tmp_path_factory.mktemp("mlflow")
    mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return folder / "mlflow.db"


@pytest.fixture
def project(tmp_path, monkeypatch, empty_database):
    """A folder with params.yaml, a stage `split`, and a local database."""
    from tests.tracking.small_pipeline import write_project  # noqa: PLC0415

    for variable in VARIABLES.split():
        monkeypatch.delenv(variable, raising=False)
    # a name that a shell or a pattern would take apart
    root = tmp_path / "a b'c;$(exit 1)&[d]"
    root.mkdir()
    write_project(root)
    shutil.copyfile(empty_database, root / "mlflow.db")
    monkeypatch.chdir(root)
    return root
