"""What is accessed when: events of a trace, prefetch requests, batches of prompts."""
