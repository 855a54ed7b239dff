"""The search for the predictor that saves most time per token: candidates, the Optuna study, workers and retries."""
