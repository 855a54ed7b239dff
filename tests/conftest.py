"""Settings of the whole test run."""

import os

from hypothesis import settings

# the first call of a compiled function takes seconds
settings.register_profile("project", deadline=None, max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "50")))
settings.load_profile("project")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
