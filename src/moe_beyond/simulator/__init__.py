"""Replay of traces through expert caches."""
