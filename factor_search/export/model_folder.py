"""Writes what exports to several engines consist of: a model folder with its own configuration, or one JSON."""

import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from factor_search.errors import OutputError
from factor_search.export.contract import Source
from factor_search.export.huggingface import export_huggingface, huggingface_config
from factor_search.export.lengths import Lengths
from factor_search.files.json_documents import write_json


def text_part(content: dict[str, Any], source: Source) -> tuple[str | None, dict[str, Any]]:
    """Return the part of a ``config.json`` that describes the decoder, with its key; None if that is all of it."""
    if source.geometry.config is not source.config:
        for name in ("text_config", "decoder", "llm_config"):  # the keys of the text part in transformers
            if isinstance(part := content.get(name), dict):
                return name, part
    return None, content


def configuration_with_lengths(source: Source, lengths: Lengths) -> dict[str, Any]:
    """Return a ``config.json`` in which two lengths express the attention factor, in all spellings that are read.

    It has ``rope_parameters`` (transformers 5), and ``rope_scaling`` with ``rope_theta`` (before). The original length
    stands in both and at the top level, and so does the share of a head that rotates.

    Args:
        source: without limits.
        lengths: see :func:`factor_search.export.lengths.lengths_for`.
    """
    content = huggingface_config(source.file, source.config, source.short)
    _, text = text_part(content, source)
    layer_type = source.geometry.layer_type
    longrope = text["rope_parameters"] if layer_type is None else text["rope_parameters"][layer_type]
    longrope["original_max_position_embeddings"] = lengths.original
    text["rope_scaling"] = dict(longrope)
    text["rope_theta"] = source.geometry.rope_theta
    text["max_position_embeddings"] = lengths.maximum
    text["original_max_position_embeddings"] = lengths.original
    if longrope.get("partial_rotary_factor"):
        text["partial_rotary_factor"] = longrope["partial_rotary_factor"]
    return content


def write_model_folder(source: Source, content: dict[str, Any], out: Path) -> list[Path]:
    """Write a model folder with a configuration and all other files of the checkpoint, whole or not at all.

    Args:
        source: without limits.
        content: the configuration.
        out: the folder to write; or a name that ends in ``.json``, for the configuration alone.

    Returns:
        The files written, the configuration first.

    Raises:
        OutputError: a file cannot be written, or ``out`` is a folder that is not empty.
    """
    if out.suffix == ".json":
        write_json(out, content)
        return [out]

    def fill(folder: Path) -> None:
        export_huggingface(source.file, source.config, source.checkpoint, folder, source.short)
        write_json(folder / "config.json", content)

    written = write_folder(out, fill)
    return sorted(written, key=lambda file: file.name != "config.json")


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
        partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        try:
            fill(partial)
            partial.chmod(0o755)
            os.replace(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from None
    return sorted(out.iterdir())


def link_or_copy(item: Path, destination: Path) -> None:
    """Copy a small file; link a large one, so that it takes no space."""
    if item.stat().st_size < 2**20:
        shutil.copyfile(item, destination)
        return
    try:
        os.link(item.resolve(), destination)
    except OSError:  # another file system
        os.symlink(item.resolve(), destination)


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
