"""The MoE-Beyond paper (arXiv 2508.17137): its network, its replay protocol, its published predictions."""
