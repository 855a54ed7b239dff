"""Readers of published trace formats."""
