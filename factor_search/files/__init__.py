"""Reads and writes files: atomic writes, the cache folder, canonical JSON, JSON with one-line errors."""
