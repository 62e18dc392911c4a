"""The identity of a checkpoint: a hash of every file that loading it reads; notices when one of them changes."""

import contextlib
import hashlib
import inspect
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME
from transformers.utils.hub import cached_file, extract_commit_hash

from factor_search.errors import ModelChangedError, ModelLoadError
from factor_search.files.atomic import write_atomically
from factor_search.files.cache import cache_folder
from factor_search.files.canonical_json import sha256_of
from factor_search.files.gguf import is_gguf
from factor_search.model.checkpoint_files import INDEX, code_of, weights_of
from factor_search.spec import ModelSpec

Status = tuple[int, ...]
SHARD = re.compile(r"(pytorch_)?model-[0-9]+-of-[0-9]+\.(bin|safetensors)")


@dataclass
class Content:
    """The files that determine what a model computes, with their hashes; there are none for a model on the hub."""

    sha256: str
    """The hash of all of them, or the commit on the hub."""
    files: dict[str, Path] = field(default_factory=dict)
    """The files by the names under which they are hashed."""
    digests: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, Status] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: ModelSpec, config: PretrainedConfig) -> "Content":
        """Hash the files of a checkpoint.

        Hashing reads every byte; the result is cached by path, size, times of modification and of change, and inode.

        Raises:
            ModelLoadError: a file cannot be read, or changes while it is read.
        """
        path = Path(spec.id)
        if is_gguf(spec.id):
            content = cls("", {path.name: path})
            content._hash()
            content.sha256 = content.digests[path.name]
            return content
        if not path.is_dir():
            return cls(_commit(spec, config) or sha256_of([spec.id, spec.revision]))
        content = cls("", files_of(path, own_code=spec.trust_remote_code))
        content._hash()
        content.sha256 = sha256_of(content.digests)
        return content

    def check_unchanged(self) -> None:
        """Check that the files have the content that they had when they were hashed.

        Files whose status is the same are not read. A removed file counts as unchanged: what was loaded stays.

        Raises:
            ModelChangedError: a file has another content now.
        """
        for name, file in self.files.items():
            try:
                status = status_of(file)
                if status == self.statuses[name]:
                    continue
                if file_hash(file) != self.digests[name]:
                    raise ModelChangedError(f"{file} has changed since the model was loaded: {_WHAT_TO_DO}")
                self.statuses[name] = status  # a link was made to it, or it was written again as it was
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ModelChangedError(f"cannot read {file} any more: {error.strerror or error}") from None

    def _hash(self) -> None:
        for name, file in self.files.items():
            try:
                self.statuses[name] = status_of(file)
                self.digests[name] = file_hash(file)
            except OSError as error:
                raise ModelLoadError(f"cannot read {file}: {error.strerror or error}") from None


def _commit(spec: ModelSpec, config: PretrainedConfig) -> str | None:
    """Return the commit of a model on the hub, whose files lie below a folder that is named by it."""
    known: str | None = getattr(config, "_commit_hash", None)
    if known is None:
        with contextlib.suppress(OSError):
            file = cached_file(spec.id, CONFIG_NAME, revision=spec.revision, local_files_only=True)
            known = extract_commit_hash(file, None)
    return known


_WHAT_TO_DO = "restore it and continue, or begin again with the model as it is now, in another folder or as a new job"


def status_of(file: Path) -> Status:
    """Return what changes when a file is written or replaced: device, inode, size, times of modification and change."""
    status = file.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def file_hash(file: Path) -> str:
    """Return the SHA-256 of a file's content, cached by its path and status.

    Raises:
        ModelChangedError: the file changes while it is read.
        OSError: it cannot be read.
    """
    status = status_of(file)
    remembered = cache_folder("file-hashes") / f"{sha256_of([str(file.resolve()), *status])}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        return str(json.loads(remembered.read_text())["sha256"])
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if status_of(file)[:-1] != status[:-1]:  # the last one also changes when a link is made
        raise ModelChangedError(f"{file} changed while it was read: begin again when it is complete")
    if status_of(file) == status:
        write_atomically(remembered, json.dumps({"sha256": digest}).encode())
    return digest


def own_code_sha256(model: PreTrainedModel) -> str | None:
    """Return the hash of the source of a model's class, if that came with a checkpoint."""
    if not type(model).__module__.startswith("transformers_modules"):
        return None
    return file_hash(Path(inspect.getfile(type(model))))


def files_of(folder: Path, *, own_code: bool) -> dict[str, Path]:
    """Return the files of a folder on which the logits depend, by their names relative to it.

    Configuration, weights (also those in other folders that their index names), and code if it may run. Tokenizers
    have an effect through tokens only, and samples are addressed by these.
    """
    inside = {file.name: file for file in sorted(folder.iterdir()) if file.is_file()}
    found = {name: file for name, file in inside.items() if _is_own(name)}
    read = [os.path.normpath(name) for name in weights_of(folder)]
    found |= {name: folder / name for name in read if not name.endswith(INDEX)}
    for index in (name for name in read if name.endswith(INDEX)):
        ending = Path(index.removesuffix(INDEX)).suffix
        if {*read} - {index} != {name for name in inside if SHARD.fullmatch(name) and Path(name).suffix == ending}:
            found[index] = folder / index  # it chooses among the files
    return found | code_of(folder) if own_code else found


def _is_own(name: str) -> bool:
    weights = name.endswith(".safetensors") or name.startswith("pytorch_model")
    return weights or name in ("config.json", ADAPTER_CONFIG_NAME)
