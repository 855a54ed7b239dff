"""Files that come in and go out: traces that others published, and what is written for others to read."""
