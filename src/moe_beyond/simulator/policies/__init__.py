"""Cache policies, a family a file."""
