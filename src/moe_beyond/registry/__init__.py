"""The gate by which a new predictor replaces the champion, its versions, its bundle with fingerprints of prompts.

MLflow itself: `tracking`.
"""
