"""The event loop: residency, prefetch, demand loads, counts, with and without a clock."""
