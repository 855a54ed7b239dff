"""Splits of traces, and tensors from them."""
