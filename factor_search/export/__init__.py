"""Factors in the formats of inference engines, one module for each."""
