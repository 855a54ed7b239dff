"""What MLflow loads and serves: the predictor as a pyfunc model. onnxruntime, numpy, pandas; no torch.

MLflow logs this file itself ("models from code"), so that a registered model holds no pickle.
A row is a prompt. For a stateless client: tokens so far, with the routing of those that have run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from moe_beyond.errors import InputError
from moe_beyond.predictor.runtime import OnnxPredictor


class ServedPredictor(PythonModel):
    """Predicts which experts come next; see `predict`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the graphs of the bundle."""
        self.predictor = OnnxPredictor(Path(context.artifacts["bundle"]) / "predictor")

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """The most probable experts of each layer.

        Args:
            context: Unused.
            model_input: A row a prompt. `tokens`: strings as the tokenizer writes them, the token to predict for last.
                `routing`, optional: what the router chose for the tokens before it, [tokens - 1][layers][k]; longer
                lists are cut, a missing list means that no routing is known.
            params: `top`, experts of each layer (0: as many as the router chooses); `every_token`, predict for each
                token rather than for the last alone.

        Returns:
            Columns `experts` and `probabilities`, each [tokens][layers][top], most probable first, ties by lower id.

        Raises:
            InputError: No token, or routing of another shape.
        """
        settings = params or {}
        top = int(settings.get("top") or self.predictor.top_k)
        rows = [
            self._predict(row, top, every_token=bool(settings.get("every_token")))
            for row in model_input.to_dict(orient="records")
        ]
        return pd.DataFrame(rows, columns=["experts", "probabilities"])

    def _predict(self, row: dict[str, Any], top: int, *, every_token: bool) -> dict[str, Any]:
        tokens, routing = list(row["tokens"]), row.get("routing")
        if not tokens:
            raise InputError("tokens: found none, expected at least the token to predict for")
        known = [] if routing is None or np.ndim(routing) == 0 else list(routing)
        if known and len(known) < len(tokens) - 1:
            raise InputError(f"routing: of {len(known)} tokens, expected that of all {len(tokens) - 1} before the last")
        stream, experts, probabilities = self.predictor.stream(), [], []
        for i, token in enumerate(tokens):
            before = np.array([list(layer) for layer in known[i - 1]]) if known and i else None
            probabilities_LE = stream.step(token, before)
            if every_token or i == len(tokens) - 1:
                best_LK = np.argsort(-probabilities_LE, axis=1, kind="stable")[:, :top]
                experts.append(best_LK.tolist())
                probabilities.append(np.take_along_axis(probabilities_LE, best_LK, axis=1).astype(float).tolist())
        return {"experts": experts, "probabilities": probabilities}


set_model(ServedPredictor())
