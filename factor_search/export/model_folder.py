"""Writes a model folder: a new configuration with all other files of a checkpoint."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from factor_search.errors import ExportError, OutputError
from factor_search.files.json_documents import read_json, write_json

CONFIGURATION = "config.json"


def write_model_folder(
    content: dict[str, Any],
    checkpoint: Path,
    out: Path,
    target_length: int,
    check: Callable[[Path], None] | None = None,
) -> list[Path]:
    """Write the folder, whole or not at all.

    Weights are hard-linked where the file system allows it, so the export takes no space; small files are copied.

    Args:
        content: the configuration.
        checkpoint: the folder with the other files.
        out: the folder to write.
        target_length: tokens of context, for the tokenizer.
        check: called with the folder before it gets its final name; raises if it is not as it should be.

    Returns:
        The files written.

    Raises:
        ExportError: the checkpoint is a file, or of ``check``.
        OutputError: a file cannot be written, or ``out`` is a folder that is not empty.
    """
    if checkpoint.is_file():
        raise ExportError(
            f"{checkpoint} is a GGUF file, which this format does not take: export with --format gguf, or give the "
            "folder of the model as --model"
        )
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(f"{out} is not empty: choose another --out")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as staging:
            folder = Path(staging, "model")
            folder.mkdir()
            _fill(folder, content, checkpoint, target_length)
            if check is not None:
                check(folder)
            folder.rename(out)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from None
    names = sorted(item.name for item in out.iterdir() if item.name != CONFIGURATION)
    return [out / CONFIGURATION, *(out / name for name in names)]


def _fill(folder: Path, content: dict[str, Any], checkpoint: Path, target_length: int) -> None:
    for item in sorted(checkpoint.iterdir()):
        if item.is_file() and item.name != CONFIGURATION:
            _place(item, folder / item.name)
    _adjust_tokenizer(folder / "tokenizer_config.json", target_length)
    write_json(folder / CONFIGURATION, content, finite=False)  # Falcon-H1 has an infinite limit


def _place(item: Path, destination: Path) -> None:
    if item.suffix == ".json" or item.stat().st_size < 2**20:
        shutil.copyfile(item, destination)
        return
    try:
        os.link(item.resolve(), destination)
    except OSError:  # another file system
        os.symlink(item.resolve(), destination)


def _adjust_tokenizer(file: Path, target_length: int) -> None:
    """Raise the tokenizer's maximum length, above which it prints a warning."""
    if not file.exists():
        return
    content = read_json(file, ExportError)
    if isinstance(content.get("model_max_length"), int) and content["model_max_length"] < target_length:
        write_json(file, content | {"model_max_length": target_length})
