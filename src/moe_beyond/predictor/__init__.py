"""Predictors of routing: baselines, the network, its ONNX form."""
