"""Measures candidates: evaluations, statistics, perplexity by length, passkey retrieval."""
