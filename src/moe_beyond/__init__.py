"""MoE-Beyond: expert traces in, a deployable expert predictor and what it saves out."""
