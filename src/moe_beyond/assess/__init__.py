"""Is this model worth offloading? Judged from traces alone."""
