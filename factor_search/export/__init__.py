"""Writes factors in the formats of inference engines, with one module per engine."""
