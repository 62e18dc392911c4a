"""A small byte-level language model that ships with the package, and the recipe that made it."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""Folder of the shipped model: context 256, byte tokenizer, Llama architecture."""
