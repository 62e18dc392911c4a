"""The small byte-level language model of the package, and the recipe that trained it."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""Folder of the shipped model: context 256, byte tokenizer, Llama architecture."""
