"""Scores of predictors: recall at k, and how far their probabilities hold."""
