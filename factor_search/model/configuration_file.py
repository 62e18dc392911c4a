"""Reads a checkpoint's configuration file: older spellings that transformers no longer loads, and adapters."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.utils import ADAPTER_CONFIG_NAME
from transformers.utils.peft_utils import find_adapter_config_file

from factor_search.errors import ModelLoadError
from factor_search.files.json_documents import read_json
from factor_search.model.checkpoint_files import LARGEST_JSON, refuse_named_code
from factor_search.model.configuration_values import check_values
from factor_search.model.geometry import TEXT_PARTS
from factor_search.model.model_folder import CONFIGURATION, folder_configuration
from factor_search.spec import ModelSpec

OLDER_NAMES = {"su": "longrope"}
"""RoPE types that checkpoints name otherwise than transformers does: Phi-3 before July 2024."""


def configuration(spec: ModelSpec) -> PretrainedConfig:
    """Load a model's configuration, with RoPE types under the names that this version of transformers knows.

    Raises:
        ModelLoadError: it is not there, is not JSON, has a value that cannot be meant, or names code that may not be
            run; names the file and the field.
        Exception: whatever transformers raises on a model that it does not know.
    """
    origin = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    if Path(spec.id).is_dir():
        folder_configuration(Path(spec.id))
    content, _ = PretrainedConfig.get_config_dict(spec.id, revision=spec.revision)
    check_values(content, f"{spec.id}/{CONFIGURATION}")  # of the hub, or of another file that the first one names
    refuse_named_code(content, spec)
    own_code = spec.trust_remote_code and "AutoConfig" in content.get("auto_map", {})
    if own_code or content.get("model_type") not in CONFIG_MAPPING or not _renamed(content):
        return AutoConfig.from_pretrained(spec.id, **origin)
    commit = content.pop("_commit_hash", None)
    return CONFIG_MAPPING[content["model_type"]].from_dict(content, name_or_path=spec.id, _commit_hash=commit)


def refuse_adapters(spec: ModelSpec) -> None:
    """Refuse a checkpoint that holds adapters of another model, in a folder or on the hub.

    Raises:
        ModelLoadError: names their model and what to do.
    """
    file = Path(spec.id, ADAPTER_CONFIG_NAME)
    if not Path(spec.id).is_dir():
        try:
            found = find_adapter_config_file(spec.id, revision=spec.revision)
        except Exception:  # no such repository, or no network: what loads the model says so
            return
        file = Path(found) if found else file
    if not file.is_file():
        return
    try:
        content = read_json(file, ModelLoadError, most_bytes=LARGEST_JSON, model=True)
        base = content.get("base_model_name_or_path") or "an unnamed model"
    except (ModelLoadError, AttributeError):
        base = "an unnamed model"
    raise ModelLoadError(
        f"{spec.id} holds adapters of {base}, not a model: merge them with "
        "PeftModel.from_pretrained(model, adapters).merge_and_unload(), save_pretrained to a new folder together with "
        f"the tokenizer, and give that folder (a merged model has no {ADAPTER_CONFIG_NAME})"
    )


def _renamed(content: dict[str, Any]) -> bool:
    """Give RoPE types their present names, in place; return whether there was one to rename."""
    renamed = False
    for parameters in _rope_parameters(content):
        for key in ("rope_type", "type"):
            if parameters.get(key) in OLDER_NAMES:
                parameters[key] = OLDER_NAMES[parameters[key]]
                renamed = True
    return renamed


def _rope_parameters(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every dictionary of RoPE parameters: of the model and its language model, for all layers or a type."""
    for part in (content, *(content.get(name) for name in TEXT_PARTS)):
        if not isinstance(part, dict):
            continue
        for key in ("rope_scaling", "rope_parameters"):
            if isinstance(part.get(key), dict):
                yield part[key]
                yield from (nested for nested in part[key].values() if isinstance(nested, dict))
