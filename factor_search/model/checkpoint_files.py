"""The files of a checkpoint: each is found and checked before a library opens one.

A checkpoint names files of its own: shards of the weights in an index, weights and vocabularies in configurations. A
library that is given the folder follows these names wherever they lead. So it is given another folder
(:func:`opened_checkpoint`), which holds links to the files that belong to the checkpoint and may be read, and nothing
else. The links lead to files that are open already, where the operating system can do that: what is read is what was
checked, even if the checkpoint's own links change meanwhile.

A checkpoint that runs its own code is given as it is, since code opens what it likes; its names are checked as well.
"""

import contextlib
import glob
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from factor_search.errors import FactorSearchError, ModelLoadError
from factor_search.files.atomic import cannot_write, partial_folder
from factor_search.files.cache import cache_folder
from factor_search.files.gguf import is_gguf
from factor_search.files.hub import asking_hub
from factor_search.files.json_documents import read_json
from factor_search.files.matching import matching_now
from factor_search.files.reading import DESCRIPTORS, checked, open_readable, readable, reading_rules
from factor_search.spec import ModelSpec, looks_local

HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
MOST_FILES = 10_000
"""Of a checkpoint; a folder with more is something else."""
INDEX = ".index.json"
"""End of the name of a file that says in which files the weights are."""
INDEXES = (f"model.safetensors{INDEX}", f"pytorch_model.bin{INDEX}")
WHOLE = ("model.safetensors", INDEXES[0], "pytorch_model.bin", INDEXES[1])
"""What transformers reads weights from, in the order in which it looks for them."""
TEMPLATES = "additional_chat_templates"
WEIGHTS = (".safetensors", ".bin", ".gguf")
READ = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".bpe", ".codes", ".spm", ".vocab", ".tokenizer")
"""Ends of the names of other files that the libraries read."""
SMALL = 2**20
"""Bytes of a file that is copied: an open file costs a descriptor, of which a process has about a thousand."""
LARGEST_JSON = 16 * 2**20
"""Bytes of a configuration."""
NAME_FILES = re.compile(r"(.*_)?(files?|spm)|vocab|merges|init_inputs")
"""Keys of a tokenizer's configuration, at any depth, whose texts are paths for transformers."""
NAME_CODE = {"config.json", "tokenizer_config.json"}
QUIETLY = tuple(f"_raise_exceptions_for_{why}" for why in ("gated_repo", "missing_entries", "connection_errors"))
KERNELS = ("attn_implementation", "experts_implementation")
"""Ends of the keys of a configuration whose values transformers may load from the hub as kernels, which are code."""


def checkpoint_files(spec: ModelSpec) -> dict[str, Path]:
    """The files of a local checkpoint by their names in its folder, each of which may be read.

    They are those directly in the folder, those from which weights are read, further chat templates, and Python code
    if it may run.

    Raises:
        ModelLoadError: there is no such folder or file, or it names files outside of itself.
        SpecError: a file is not in a folder that may be read.
    """
    place = Path(spec.id)
    if is_gguf(spec.id):
        readable(place, "model.id", model=True)
        return {place.name: place}
    found = dict(_files_in(place, ""))
    found |= {name: place / name for name in weights_of(place)}
    found |= dict(_files_in(place / TEMPLATES, f"{TEMPLATES}/"))
    if spec.trust_remote_code:
        found |= code_of(place)
    for file in found.values():
        readable(file, "model.id", model=True)
    return found


def weights_of(folder: Path) -> list[str]:
    """The names of the files in a folder from which transformers reads weights, after that of their index if any.

    Other weights and indexes, which a conversion may have left, are not read. The files need not be there.

    Raises:
        ModelLoadError: the configuration or the index names files outside of the folder, or the index is broken.
    """
    name = _named_weights(folder / "config.json") or next((name for name in WHOLE if (folder / name).exists()), None)
    if name is None:
        return []
    if not name.endswith(INDEX) or not (folder / name).exists():
        return [name]
    content = read_json(folder / name, ModelLoadError, model=True)
    return [name, *sorted(shards_named(content, folder / name))]


def _named_weights(configuration: Path) -> str | None:
    """The file that a configuration names as the only one with weights, or their index."""
    if not configuration.exists():
        return None
    try:
        content = read_json(configuration, ModelLoadError, most_bytes=LARGEST_JSON, model=True)
    except ModelLoadError:  # what loads the configuration says so
        return None
    name = content.get("transformers_weights") if isinstance(content, dict) else None
    if name is not None and not (isinstance(name, str) and _is_inside(name)):
        raise ModelLoadError(
            f"{configuration}: transformers_weights is {name!r:.200}, which is not a file below its folder"
        )
    return name


def code_of(folder: Path) -> dict[str, Path]:
    """The Python files in a folder and below it, by their names relative to it.

    Raises:
        DataError: there are too many files to look at.
    """
    found = matching_now(os.path.join(glob.escape(str(folder)), "**", "*.py"))
    return {os.path.relpath(file, folder): Path(file) for file in found if os.path.isfile(file)}


@contextlib.contextmanager
def opened_checkpoint(spec: ModelSpec, *, weights: bool = True) -> Iterator[str]:
    """What to give to a library in place of a model's id: a folder with the files that may be read, or a hub id.

    Args:
        spec: the model.
        weights: whether the weights are needed.

    Raises:
        ModelLoadError: a file cannot be opened, or the checkpoint names files outside of itself; or the model would
            come from the hub, which may not be used.
        SpecError: a file is not in a folder that may be read.
    """
    if not is_local(spec.id):
        with asking_hub(spec.id):
            _check_hub(spec, weights)
        yield spec.id
        return
    files = checkpoint_files(spec)
    if spec.trust_remote_code and not is_gguf(spec.id):
        for name in NAME_CODE & files.keys():
            refuse_named_code(read_json(files[name], ModelLoadError, model=True), spec)
        yield spec.id
        return
    with contextlib.ExitStack() as stack:
        try:
            view = stack.enter_context(_view())
        except OSError as error:
            raise ModelLoadError(f"cannot make a folder for links to {spec.id}: {error.strerror or error}") from None
        needed = set() if is_gguf(spec.id) else set(weights_of(Path(spec.id)))
        for name, file in files.items():
            known = name.endswith((*READ, *WEIGHTS)) or name in needed
            if is_gguf(spec.id) or (known and (weights or not name.endswith(WEIGHTS))):
                _link(view / name, file, stack.callback)
        place = str(view / Path(spec.id).name if is_gguf(spec.id) else view)
        try:
            yield place
        except FactorSearchError as error:
            error.args = tuple(str(text).replace(place, spec.id) for text in error.args)
            raise


@contextlib.contextmanager
def _view() -> Iterator[Path]:
    """An empty folder that only this user can read; those that killed processes left are removed first.

    Raises:
        OSError: it cannot be created.
    """
    views = cache_folder("opened")
    with contextlib.ExitStack() as stack:
        if os.access(views, os.W_OK):
            view = stack.enter_context(partial_folder(views / "checkpoint"))
            view.chmod(0o700)
        else:
            view = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="checkpoint-")))
        yield view


def is_local(model_id: str) -> bool:
    """Whether an id is that of a checkpoint on this machine."""
    return looks_local(model_id) or is_gguf(model_id) or os.path.lexists(model_id)


def check_hub_id(model_id: str) -> None:
    """Refuse what cannot be the name of a model on the hub.

    Raises:
        ModelLoadError: saying so.
    """
    if not HUB_NAME.fullmatch(model_id) or ".." in model_id or "--" in model_id:
        raise ModelLoadError(
            f"{model_id[:200]!r} is neither a folder here nor the name of a model on the hub, which is owner/name"
        )


def refuse_named_code(content: Any, spec: ModelSpec) -> None:
    """Refuse a configuration that names code which is not its own, unless code may be run.

    Args:
        content: of ``config.json``; every part of it is looked at, however deep.
        spec: the model.

    Raises:
        ModelLoadError: it names a kernel of the hub where no code may be run, or code of another repository where that
            may not be used.
    """
    left = [content]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left += part
        if not isinstance(part, dict):
            continue
        left += part.values()
        for key, value in part.items():
            if str(key).removesuffix("_internal").endswith(KERNELS) and not spec.trust_remote_code:
                _refuse_kernel(str(key), value, spec)
            if key == "auto_map" and spec.trust_remote_code and not reading_rules().hub:
                for name in _texts(value):
                    if "--" in name:
                        raise ModelLoadError(
                            f"{spec.id}: auto_map names code of another repository ({name[:200]!r}), and the hub is "
                            "not allowed here: copy the code into the model's folder, and leave out what is before '--'"
                        )


def _refuse_kernel(key: str, value: Any, spec: ModelSpec) -> None:
    for name in _texts(value):
        if "/" in name:
            raise ModelLoadError(
                f"{spec.id}: {key} of its configuration is {name[:200]!r}, a kernel of the hub, which is code: remove "
                "it, or allow the model's code to run (--trust-remote-code, model.trust_remote_code)"
            )


def _texts(value: Any) -> Iterator[str]:
    """All strings in a value."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            left += part.values()
        elif isinstance(part, list):
            left += part


def _files_in(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    """The files directly in a folder, links included; nothing if there is no folder.

    Raises:
        ModelLoadError: there are too many.
    """
    try:
        readable(folder, "model.id", model=True)
        with os.scandir(folder) as entries:
            for number, entry in enumerate(sorted(entries, key=lambda entry: entry.name)):
                if number >= MOST_FILES:
                    raise ModelLoadError(
                        f"{folder} has more than {MOST_FILES:,} files: it is not the folder of a model"
                    )
                if entry.is_symlink() or entry.is_file():
                    readable(entry.path, "model.id", model=True)
                if entry.is_file():
                    yield f"{prefix}{entry.name}", folder / entry.name
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ModelLoadError(f"cannot read {folder}: {error.strerror or error}") from None


def shards_named(content: Any, index: Path) -> set[str]:
    """The files with weights that an index names, all of them below its folder.

    Raises:
        ModelLoadError: it is not an index, or names a file elsewhere.
    """
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise ModelLoadError(
            f"{index}: weight_map is not an object that names the file of each tensor: download it again"
        )
    for tensor, name in shards.items():
        if not isinstance(name, str) or not name:
            raise ModelLoadError(f"{index}: weight_map.{tensor:.100} is {name!r:.60}, not the name of a file")
        if not _is_inside(name):
            raise ModelLoadError(f"{index} names {name[:200]!r}, which is not a file below its folder")
    return set(shards.values())


def _is_inside(name: str) -> bool:
    if any(text in name for text in ("\0", "\\", "://")):
        return False
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _link(link: Path, file: Path, on_close: Callable[..., Any]) -> None:
    """Make a link to an open file, or a copy of a small one; of a tokenizer's configuration without named files."""
    try:
        with contextlib.ExitStack() as stack:
            descriptor = open_readable(file, "model.id", model=True)
            stack.callback(os.close, descriptor)
            link.parent.mkdir(parents=True, exist_ok=True)
            size, own = os.fstat(descriptor).st_size, file.name == "tokenizer_config.json"
            if own and size > LARGEST_JSON:
                raise ModelLoadError(f"{file} is larger than {LARGEST_JSON // 2**20} MiB")
            if own or (size <= SMALL and link.name.endswith(READ)):
                with os.fdopen(os.dup(descriptor), "rb") as stream:
                    content = stream.read(LARGEST_JSON if own else SMALL)
                if _copied(link, _without_files(content) if own else content, required=own):
                    return
            opened = DESCRIPTORS / str(descriptor)
            link.symlink_to(opened if opened.is_symlink() else file.resolve())
            on_close(stack.pop_all().close)
    except FileNotFoundError:  # the library says what is missing
        return
    except OSError as error:
        raise ModelLoadError(f"cannot read {file}: {error.strerror or error}") from None


def _copied(copy: Path, content: bytes, *, required: bool) -> bool:
    """Write a file's content, and return whether there was room for it.

    Raises:
        OutputError: there was not, and it is required.
    """
    try:
        copy.write_bytes(content)
    except OSError as error:
        copy.unlink(missing_ok=True)
        if required:
            raise cannot_write(copy, error) from None
        return False
    return True


def _without_files(content: bytes) -> bytes:
    """A tokenizer's configuration without the names of files that were on the machine which wrote it."""
    try:
        settings = json.loads(content)
        for part, key in _named_files(settings):
            del part[key]
    except (ValueError, RecursionError):  # the library says what is wrong
        return content
    return json.dumps(settings).encode()


def _named_files(settings: Any) -> list[tuple[dict[str, Any], str]]:
    """The objects and keys in a tokenizer's configuration that name files."""
    found, left = [], [settings]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            named = [key for key in part if NAME_FILES.fullmatch(key) and isinstance(part[key], str | list)]
            found += [(part, key) for key in named if isinstance(part[key], str) or key not in ("vocab", "merges")]
            left += part.values()
        elif isinstance(part, list):
            left += part
    return found


def _check_hub(spec: ModelSpec, weights: bool) -> None:
    """Refuse a name that cannot be on the hub, shards outside of the repository, and a tokenizer of files elsewhere.

    Raises:
        ModelLoadError: saying which.
    """
    if not reading_rules().hub:
        raise ModelLoadError(f"model {spec.id!r} would come from the hub, which is not allowed here: use a local path")
    check_hub_id(spec.id)
    from transformers.utils import cached_file

    for name in INDEXES if weights else ("tokenizer_config.json",):
        try:
            cached = cached_file(spec.id, name, revision=spec.revision, **dict.fromkeys(QUIETLY, False))
        except Exception:  # whatever the client of the hub raises: what loads the model says so
            cached = None
        if cached is None:
            continue
        with checked():  # the cache is where the library keeps it
            content = read_json(Path(cached), ModelLoadError)
        if weights:
            shards_named(content, Path(cached))
            continue
        for part, key in _named_files(content):
            for path in _texts(part[key]):
                if path and os.path.lexists(path.replace("\0", "")):
                    raise ModelLoadError(
                        f"{name} of {spec.id} names {path[:200]!r} in {key}, a file of this machine and not of the "
                        "repository: download the model, and give its folder"
                    )
