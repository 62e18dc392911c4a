"""Writes what exports consist of: a model folder with a new configuration, any other folder, or one JSON document."""

import contextlib
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from factor_search.errors import ExportError, OutputError
from factor_search.files.atomic import cannot_write, move_folder, partial_folder
from factor_search.files.json_documents import read_json, write_json
from factor_search.files.reading import checked, readable, reading_rules
from factor_search.model.checkpoint_files import checkpoint_files
from factor_search.spec import ModelSpec

CONFIGURATION = "config.json"


def write_model_folder(
    content: dict[str, Any],
    checkpoint: Path,
    out: Path,
    target_length: int,
    check: Callable[[Path], None] | None = None,
    *,
    from_hub: bool = False,
) -> list[Path]:
    """Write the folder, whole or not at all.

    Weights are hard-linked where the file system allows it, so the export takes no space; small files are copied.

    Args:
        content: the configuration.
        checkpoint: the folder with the other files.
        out: the folder to write.
        target_length: tokens of context, for the tokenizer.
        check: called with the folder before it gets its final name; raises if it is not as it should be.
        from_hub: whether the checkpoint was downloaded, so that the rules for files of users do not apply to it.

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

    def fill(folder: Path) -> None:
        no_links = from_hub and reading_rules().roots is not None  # they would lead out of the folders for jobs
        with checked() if from_hub else contextlib.nullcontext():
            for name, item in checkpoint_files(ModelSpec(id=str(checkpoint))).items():
                if item.is_file() and name != CONFIGURATION:
                    (folder / name).parent.mkdir(exist_ok=True, parents=True)
                    link_or_copy(item, folder / name, no_links=no_links)
        _adjust_tokenizer(folder / "tokenizer_config.json", target_length)
        write_json(folder / CONFIGURATION, content, finite=False)  # Falcon-H1 has an infinite limit
        if check is not None:
            check(folder)

    return sorted(write_folder(out, fill), key=lambda file: file.name != CONFIGURATION)


def write_folder(out: Path, fill: Callable[[Path], None]) -> list[Path]:
    """Write a folder, whole or not at all.

    Args:
        out: the folder to write.
        fill: writes all files into an empty folder beside it.

    Returns:
        The files written.

    Raises:
        OutputError: a file cannot be written, or ``out`` is a folder that is not empty.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(f"{out} is not empty: choose another --out")
        out.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(out) as partial:
            fill(partial)
            if out.is_dir():
                out.rmdir()  # fails unless it is still empty
            move_folder(partial, out)
    except OSError as error:
        raise cannot_write(out, error) from None
    return sorted(item for item in out.rglob("*") if item.is_file())


def link_or_copy(item: Path, destination: Path, *, no_links: bool = False) -> None:
    """Copy a small file or a JSON; link a large one, so that it takes no space.

    Args:
        item: the file.
        destination: its new name.
        no_links: whether a large one is copied where only a symbolic link is possible.
    """
    readable(item, "model.id", model=True)
    if item.suffix == ".json" or item.stat().st_size < 2**20:
        shutil.copyfile(item, destination)
        return
    try:
        os.link(item.resolve(), destination)
    except OSError:  # another file system
        (shutil.copyfile if no_links else os.symlink)(item.resolve(), destination)


def write_document(content: dict[str, Any], out: Path, name: str) -> Path:
    """Write one JSON document.

    Args:
        content: the document.
        out: a file name that ends in ``.json``, or a folder.
        name: the name of the document in a folder.

    Raises:
        OutputError: the file cannot be written.
    """
    file = out if out.suffix == ".json" else out / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror or error}") from None
    write_json(file, content)
    return file


def shell_command(*words: str | int | Path) -> str:
    """Join the words of a command, each quoted for a shell."""
    return shlex.join(str(word) for word in words)


def content_of(file: Path) -> str:
    """A word for a shell that is the content of a file."""
    return f'"$(cat {shlex.quote(str(file))})"'


def loading_options(model: ModelSpec) -> list[str]:
    """Options of vLLM and SGLang that say which files of a model on the hub to load, and how."""
    return [
        *(["--revision", model.revision] if model.revision else []),
        *(["--trust-remote-code"] if model.trust_remote_code else []),
    ]


def _adjust_tokenizer(file: Path, target_length: int) -> None:
    """Raise the tokenizer's maximum length, above which it prints a warning."""
    if not file.exists():
        return
    content = read_json(file, ExportError, own=True)
    if isinstance(content.get("model_max_length"), int) and content["model_max_length"] < target_length:
        write_json(file, content | {"model_max_length": target_length})
