"""Scores text with installed inference engines, to show that they compute with the exported factors."""
