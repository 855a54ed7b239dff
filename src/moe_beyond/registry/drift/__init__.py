"""Do new traces still look like those that a predictor learned from?"""
