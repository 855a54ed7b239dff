"""What is wanted when: events of a trace, prefetch requests, batches of prompts."""
