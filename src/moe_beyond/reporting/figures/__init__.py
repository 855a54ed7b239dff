"""Charts of the page, and how they become pictures."""
