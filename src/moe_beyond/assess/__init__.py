"""Is this model worth offloading? Judged from traces alone, and before its download from its header."""
