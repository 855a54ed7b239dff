"""The model that makes the embedded default self-contained."""
