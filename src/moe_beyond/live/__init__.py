"""Decoding a real model with its experts on a slow tier, under a policy."""
