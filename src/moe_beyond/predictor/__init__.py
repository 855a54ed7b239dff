"""Predictors that need no PyTorch: baselines, and the trained network in onnxruntime."""
