"""Predictors that need no PyTorch: baselines, the trained network in onnxruntime, what its steps take."""
