"""Converts documents to tokens and samples, and inserts needles."""
