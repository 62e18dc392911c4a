"""Small GGUF files of random models, of any architecture."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.gguf_writer import write_model
from factor_search.files.gguf import read_header, text_entry, write_gguf
from tests.families import tiny_model


def file_of(folder: Path, architecture: str = "llama", **options: Any) -> Path:
    """A file of any architecture: a real one of three, or a llama that says it were another."""
    real = architecture if architecture in ("llama", "qwen2", "phi3") else "llama"
    model = tiny_model(real, vocab_size=257)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_()
    file = write_model(folder / f"{architecture}.gguf", model, real, **options)
    if real != architecture:
        header = read_header(file)
        metadata = {key.replace(f"{real}.", f"{architecture}."): entry for key, entry in header.metadata.items()}
        write_gguf(replace(header, metadata={**metadata, "general.architecture": text_entry(architecture)}), file)
    return file
