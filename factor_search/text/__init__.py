"""Makes documents into tokens and samples, and inserts needles."""
