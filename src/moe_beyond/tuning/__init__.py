"""The search for the predictor that saves most time per token on a device: candidates, trials, workers."""
