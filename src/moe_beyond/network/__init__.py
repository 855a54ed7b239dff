"""The predictor in PyTorch: its network, checkpoints, and the way to ONNX. `predictor/` runs what comes of it."""
