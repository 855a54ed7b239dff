"""Routing traces: what a router decided, for every token and layer."""
