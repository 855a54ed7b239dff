"""Which policy, budget split and prefetch width to run on a device, in words."""
