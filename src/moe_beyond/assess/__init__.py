"""Is this model worth offloading? Answered from traces alone."""
