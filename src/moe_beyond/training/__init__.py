"""One fit of a predictor, which the search and the train stage share."""
