"""Recording what a router decides, token by token and layer by layer, of any Mixture-of-Experts in transformers."""
