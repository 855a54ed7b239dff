"""The gate by which a new predictor replaces the champion, its versions, its bundle with fingerprints of training prompts.

MLflow itself: `tracking`.
"""
