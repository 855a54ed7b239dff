"""Published figures, and what this repository makes of the files that they were published with."""
