"""Loads checkpoints without log output, refuses broken ones, and hashes their content."""

import contextlib
import logging
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.utils import logging as transformers_logging

from factor_search.errors import FactorSearchError, ModelLoadError, UnsupportedModelError, one_line
from factor_search.files.canonical_json import sha256_of
from factor_search.files.gguf import is_gguf, read_header
from factor_search.files.reading import checked
from factor_search.model.auto_class import auto_class, own_code_forgotten
from factor_search.model.checkpoint_files import checkpoint_files, is_local, opened_checkpoint
from factor_search.model.configuration import read_geometry
from factor_search.model.configuration_file import configuration, refuse_adapters
from factor_search.model.content import Content, own_code_sha256
from factor_search.model.geometry import Geometry
from factor_search.model.gguf_file import gguf_config, gguf_model
from factor_search.model.gguf_tokenizer import gguf_tokenizer
from factor_search.model.live_frequencies import with_live_frequencies
from factor_search.model.model_folder import check_files, require_configuration
from factor_search.spec import ModelSpec

KEY_VERSION = "2"
"""Raised when this package computes losses otherwise than before; "2" knows the environment."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for evaluation, with its tokenizer, geometry and identity."""

    model: PreTrainedModel
    tokenizer: Any
    geometry: Geometry
    content: str
    """The hash of the checkpoint's files, or the commit on the hub."""
    spec: ModelSpec
    files: Content = field(default_factory=lambda: Content(""), compare=False)
    """The files that were read, to notice when they change."""

    @property
    def identity(self) -> dict[str, str]:
        """The properties of the model itself on which the result of an evaluation depends."""
        return {
            "model": self.content,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": str(self.model.config._attn_implementation),
        }

    @property
    def environment(self) -> dict[str, str]:
        """What else the result of an evaluation depends on: the kind of device, and the releases of the libraries.

        Devices of a kind differ by the rounding of their kernels, as batches of different sizes do, and may be mixed.
        Releases count in full, since also those of the third number have corrected models (transformers 4.48.1: Phi);
        builds of a release (``+cpu``, ``+cu128``) do not.
        """
        device = self.model.device.type
        return {
            "key_version": KEY_VERSION,
            "device": "rocm" if device == "cuda" and torch.version.hip else device,
            "torch": torch.__version__.partition("+")[0],
            "transformers": transformers_version.partition("+")[0],
        }


def load_model(spec: ModelSpec) -> LoadedModel:
    """Load a model and its tokenizer for evaluation.

    Raises:
        ModelLoadError: there is no such model, its files are broken, or weights are missing.
        UnsupportedModelError: the model has no rotary position embeddings, or its rotary modules hold frequencies that
            are not those of RoPE; or transformers cannot predict text with it.
        ModelChangedError: a file changes while it is loaded.
    """
    config = load_config(spec)
    geometry = read_geometry(config, spec.original_length)
    loader = auto_class(config)
    check_weights(spec, config)
    device = _device(spec)
    files = Content.of(spec, config)
    options: dict[str, Any] = {} if spec.attention == "auto" else {"attn_implementation": spec.attention}
    with quietly(), opened_checkpoint(spec) as place, checked(), _explained(spec, "model"), own_code_forgotten():
        if is_gguf(spec.id):
            model, information = gguf_model(spec.model_copy(update={"id": place}), config, **options)
        else:
            options |= {"config": config, "dtype": spec.dtype, **_origin(spec)}
            model, information = loader.from_pretrained(place, output_loading_info=True, **options)
        model.config.name_or_path = model.name_or_path = spec.id
    absent = sorted(information["missing_keys"]) + sorted(str(key) for key in information["mismatched_keys"])
    if absent:
        raise ModelLoadError(
            f"the checkpoint of {spec.id} lacks {len(absent)} weights that the model needs, {absent[0]} among them: "
            "transformers would initialise them at random; give a complete checkpoint"
        )
    geometry = with_live_frequencies(model, geometry)
    with _explained(spec, f"weights on device {device}"):
        model = model.to(device).eval()
    if geometry.odd or config.get_text_config(decoder=True) is not config:
        _check_reads_text(model, geometry)
    tokenizer = load_tokenizer(spec)
    files.check_unchanged()
    if any("--" in str(name) for name in (getattr(config, "auto_map", None) or {}).values()):
        files.sha256 = sha256_of([files.sha256, own_code_sha256(model)])  # the code is of another repository
    return LoadedModel(model, tokenizer, geometry, files.sha256, spec, files)


def load_config(spec: ModelSpec) -> PretrainedConfig:
    """Load the configuration of a model; see :func:`factor_search.model.configuration_file.configuration`.

    Raises:
        ModelLoadError: there is none, it is broken, or there are only adapters of another model.
    """
    if not is_gguf(spec.id) and is_local(spec.id) and not Path(spec.id).is_dir():
        raise ModelLoadError(f"there is no model folder {spec.id}")
    with quietly(), opened_checkpoint(spec, weights=False) as place, checked(), _explained(spec, "configuration"):
        config = gguf_config(Path(place)) if is_gguf(spec.id) else _configuration(spec, place)
        config.name_or_path = spec.id
        return config


def _configuration(spec: ModelSpec, place: str) -> PretrainedConfig:
    if Path(spec.id).is_dir():
        refuse_adapters(spec)
        require_configuration(Path(spec.id))
    try:
        return configuration(spec.model_copy(update={"id": place}))
    except Exception:
        refuse_adapters(spec)
        raise


def check_weights(spec: ModelSpec, config: PretrainedConfig) -> None:
    """Check the files of a model in a local folder without loading it.

    Raises:
        ModelLoadError: see :func:`factor_search.model.model_folder.check_files`.
    """
    if not is_gguf(spec.id) and Path(spec.id).is_dir():  # the header of a GGUF file is read with its configuration
        with opened_checkpoint(spec) as place, checked():
            check_files(Path(place), config)


def load_tokenizer(spec: ModelSpec) -> Any:
    """Load the tokenizer of a model.

    Raises:
        ModelLoadError: there is none, or it is broken.
    """
    with contextlib.ExitStack() as stack, quietly():
        place = stack.enter_context(opened_checkpoint(spec, weights=False))
        with checked(), _explained(spec, "tokenizer"):
            if is_gguf(spec.id):
                return gguf_tokenizer(Path(place))
            config = configuration(spec.model_copy(update={"id": place}))
            tokenizer = AutoTokenizer.from_pretrained(place, config=config, **_origin(spec))
        tokenizer.name_or_path = spec.id
        if place != spec.id:  # some tokenizers read their files again, when they are saved
            weakref.finalize(tokenizer, stack.pop_all().close)
        return tokenizer


def checkpoint_folder(spec: ModelSpec) -> Path:
    """Return the folder with all files of a checkpoint, or the GGUF file; a checkpoint on the hub is downloaded.

    Raises:
        ModelLoadError: the checkpoint cannot be downloaded, or the GGUF file is broken.
    """
    if is_local(spec.id):
        checkpoint_files(spec)
    if is_gguf(spec.id):
        read_header(Path(spec.id))
    if is_gguf(spec.id) or Path(spec.id).is_dir():
        return Path(spec.id)
    with quietly(), opened_checkpoint(spec), _explained(spec, "files"):
        return Path(snapshot_download(spec.id, revision=spec.revision))


def _origin(spec: ModelSpec) -> dict[str, Any]:
    return {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}


@torch.inference_mode()
def _check_reads_text(model: PreTrainedModel, geometry: Geometry) -> None:
    """Check that a model predicts text without images or sound, and rotates an odd dimension if it has one.

    Raises:
        UnsupportedModelError: it does not.
    """
    ids = torch.ones(1, 2, dtype=torch.long, device=model.device)
    try:
        logits = model(input_ids=ids, use_cache=False, return_dict=True).logits
        assert logits.shape[:2] == ids.shape
    except Exception as error:  # whatever the code of a model raises without its other inputs
        raise UnsupportedModelError(
            f"{geometry.architecture} does not compute logits of a text alone in this version of transformers "
            f"({one_line(error)}): give the checkpoint of its language model alone, if there is one"
        ) from error


def _device(spec: ModelSpec) -> torch.device:
    if spec.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(spec.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError where torch was built without the device
        raise ModelLoadError(f"cannot use device {spec.device!r}: {one_line(error)}") from None
    return device


_GLOBAL_STATE = threading.RLock()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Suppress log lines and progress bars of the libraries; problems are raised as errors.

    Only one thread at a time runs inside, since log levels belong to the process. So does what transformers patches
    while it loads: two loads that overlap disable ``PreTrainedModel.tie_weights`` permanently.
    """
    with _GLOBAL_STATE, _silenced():
        yield


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    hub_logger = logging.getLogger("huggingface_hub")
    hub_level = hub_logger.level
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    hub_logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_logger.setLevel(hub_level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def _explained(spec: ModelSpec, what: str) -> Iterator[None]:
    """Convert any error that third-party loaders raise on a broken checkpoint into a one-line error."""
    try:
        yield
    except (FactorSearchError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of the libraries in Rust is no Exception
        if not spec.trust_remote_code and "trust_remote_code" in str(error):
            raise ModelLoadError(
                f"the {what} of {spec.id} needs Python code that comes with it, and runs only if you allow that: read "
                'the code, then give --trust-remote-code, or "trust_remote_code": true in the model of a specification'
            ) from None
        place = "" if Path(spec.id).exists() else " (there is no such folder here, so it was looked for on the hub)"
        raise ModelLoadError(f"cannot load the {what} of {spec.id}{place}: {one_line(error)}") from error
