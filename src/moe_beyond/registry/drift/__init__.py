"""Do new traces still look like those that a predictor was trained on?"""
