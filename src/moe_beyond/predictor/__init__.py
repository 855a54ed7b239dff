"""Predictors that need no PyTorch: baselines, the network in onnxruntime, its latency, the prompts it was fitted on."""
