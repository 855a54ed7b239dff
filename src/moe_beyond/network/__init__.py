"""The predictor in PyTorch: its network, checkpoints, export to ONNX, int8. `predictor/` runs what comes of it."""
