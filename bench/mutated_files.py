"""Files of others with something wrong in them: small models, factors and documents, changed at random by a seed."""

import json
import math
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.mutation_materials import FAMILIES

TARGET_LENGTH = 128
HOSTILE: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 65, 4096, 10**6, 10**9, 2**31, 2**40, 2**53, 2**63, -(2**63), 10**40, 10**400),
    *(0.0, -0.0, 0.3, 0.999, 1.0, 1.5, 1e-300, 1e6, 1e30, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *("", "a", "NaN", "2", "auto", "default", "linear", "yarn", "llama", "\u0000", "\ud800", "../../x", "x" * 70_000),
    *(
        None,
        True,
        False,
        [],
        {},
        [[]],
        [None],
        [1],
        [1.0] * 8,
        [math.nan] * 8,
        ["a"],
        {"a": 1},
        {"": None},
        [0] * 70_000,
    ),
)
"""Values that are put where others were."""
NESTED = 5000
"""How deep the deepest values are nested."""
FIELDS = (
    *(
        "head_dim",
        "partial_rotary_factor",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "original_max_position_embeddings",
    ),
    *(
        "max_position_embeddings",
        "num_key_value_heads",
        "layer_types",
        "sliding_window",
        "tie_word_embeddings",
        "dtype",
    ),
    *("architectures", "model_type", "auto_map", "num_labels", "id2label", "quantization_config", "is_encoder_decoder"),
    *("text_config", "per_layer_config", "tokenizer_class", "no_rope_layers", "attention_bias", "hidden_act"),
    *("configuration_files", "transformers_version", "pruned_heads", "problem_type", "pad_token_id", "name_or_path"),
)
"""Fields that are added to configurations."""
ROPE_FIELDS = (
    "factor",
    "rope_type",
    "type",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "alpha",
)
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "su", "mrope", "proportional", "unknown")


class Mutation:
    """One mutated case: what a job names, and what was changed."""

    def __init__(self, materials: Path, folder: Path, seed: int, number: int) -> None:
        """Write the files of a case; the same seed and number give the same.

        Args:
            materials: of :func:`bench.mutation_materials.make_materials`.
            folder: an empty one for the case.
            seed: of the campaign.
            number: of the case, which chooses its kind.
        """
        self.materials, self.folder = materials, folder
        self.random = random.Random(f"{seed}/{number}")
        self.kind = KINDS[number % len(KINDS)]
        self.what: list[str] = []
        """What was changed, for the table."""
        self.model = str(materials / "llama")
        self.files = [f"{materials}/texts/*.txt"]
        self.factors: str | None = None
        WRITERS[self.kind](self)

    @property
    def document(self) -> dict[str, Any]:
        """The job specification that names the files."""
        job: dict[str, Any] = {
            "model": {"id": self.model, "device": "cpu"},
            "data": {"files": self.files, "search_documents": 1, "validation_documents": 1, "held_out_documents": 1},
            "target_length": TARGET_LENGTH,
            "space": {"initial_tokens": [0]},
            "budget": 9,
        }
        return job if self.factors is None else job | {"warm_start": {"files": [self.factors]}}

    def copied(self, family: str | None = None) -> Path:
        """A copy of a model folder, whose weights are links until they are replaced."""
        source = self.materials / (family or self.random.choice((*FAMILIES, "llava")))
        target = self.folder / "model"
        shutil.copytree(source, target, copy_function=_link_weights)
        self.model = str(target)
        return target

    def value(self) -> Any:
        """A hostile value."""
        return self.random.choice(HOSTILE)

    def spoil_json(self, file: Path, fields: tuple[str, ...] = (), *, rope: bool = False) -> None:
        """Change values of a JSON file, or in one case of six its bytes."""
        if self.random.random() < 1 / 6:
            self.spoil_bytes(file)
            return
        content = json.loads(file.read_text(encoding="utf-8"))
        for _ in range(self.random.choice((1, 1, 1, 2, 4))):
            self._change(content, fields, rope)
        text = json.dumps(content)
        if self.random.random() < 0.05:
            opening, closing = self.random.choice((("[", "]"), ('{"a":', "}")))
            text = text[:-1] + f', "deep": {opening * NESTED}1{closing * NESTED}}}'
            self.what.append(f"nested {NESTED} deep")
        file.write_text(text, encoding="utf-8")

    def _change(self, content: Any, fields: tuple[str, ...], rope: bool) -> None:
        places = list(_places(content))
        ropes = [
            item for _, key, item in places if key in ("rope_parameters", "rope_scaling") and isinstance(item, dict)
        ]
        choice = self.random.random()
        if rope and ropes and choice < 0.3:
            holder = self.random.choice(ropes)
            key = self.random.choice((*ROPE_FIELDS, *holder))
            value = self.random.choice(ROPE_TYPES) if "type" in key else self.value()
        elif fields and choice < 0.5 and isinstance(content, dict):
            holder, key, value = content, self.random.choice(fields), self.value()
        else:
            holder, key, _ = self.random.choice(places)
            value = self.value()
            if choice > 0.9:
                self.what.append(f"{key} removed")
                holder.pop(key)
                return
        self.what.append(f"{key} = {value!r:.40}")
        holder[key] = value

    def spoil_bytes(self, file: Path, until: int | None = None) -> None:
        """Cut, change, insert or repeat bytes, of the first ``until`` where given."""
        content = bytearray(file.read_bytes())
        within = min(until or len(content), len(content))
        place, kind = self.random.randrange(within), self.random.randrange(6)
        if kind == 0:
            del content[place:]
        elif kind == 1:
            for _ in range(self.random.randint(1, 8)):
                content[self.random.randrange(within)] = self.random.randrange(256)
        elif kind == 2:
            content[place:place] = self.random.randbytes(self.random.randint(1, 64))
        elif kind == 3:
            content[place : place + 8] = struct.pack("<Q", self.random.choice((0, 1, 2**20, 2**32, 2**63, 2**64 - 1)))
        elif kind == 4:
            content[place:place] = content[max(place - 200, 0) : place]
        else:
            content = bytearray(
                self.random.choice((b"", b"\xff\xfe", b"\xef\xbb\xbf" + content, b"null", b"{" * 10**5))
            )
        self.what.append(f"bytes, kind {kind} at {place}")
        file.unlink()
        file.write_bytes(content)


def _link_weights(source: str, target: str) -> str:
    if source.endswith(".safetensors"):
        os.link(source, target)
        return target
    return str(shutil.copyfile(source, target))


def _places(content: Any) -> list[tuple[Any, Any, Any]]:
    """Every place of a value: what holds it, its key or position, and the value."""
    found, left = [], [content]
    while left:
        holder = left.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for key, value in list(items):
            found.append((holder, key, value))
            if isinstance(value, dict | list):
                left.append(value)
    return found


def _config(case: Mutation) -> None:
    case.spoil_json(case.copied() / "config.json", FIELDS, rope=True)


def _json_of(name: str, *fields: str) -> Callable[[Mutation], None]:
    def write(case: Mutation) -> None:
        case.spoil_json(case.copied() / name, fields)

    return write


def _companion(case: Mutation) -> None:
    folder = case.copied("llama")
    name = case.random.choice(
        ("special_tokens_map.json", "added_tokens.json", "adapter_config.json", "chat_template.json")
    )
    (folder / name).write_text(json.dumps({"bos_token": "a", "base_model_name_or_path": "b", "<x>": 300, "list": [1]}))
    case.what.append(name)
    case.spoil_json(folder / name)


def _safetensors(case: Mutation) -> None:
    file = case.copied(case.random.choice(("llama", "gpt_neox"))) / "model.safetensors"
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    if case.random.random() < 0.4:
        case.spoil_bytes(file, 8 + size)
        return
    header = json.loads(content[8 : 8 + size])
    for _ in range(case.random.choice((1, 1, 2))):
        name = case.random.choice(list(header))
        key = case.random.choice(("dtype", "shape", "data_offsets"))
        values = {
            "dtype": ("F32", "F64", "X9", "F4"),
            "shape": ([2**40, 2**40], [1], [-1], []),
            "data_offsets": ([0, 4], [4, 0]),
        }
        value = case.random.choice((*values[key], case.value()))
        header[name] = (
            case.value() if case.random.random() < 0.2 or name == "__metadata__" else header[name] | {key: value}
        )
        case.what.append(f"{name}.{key} = {value!r:.40}")
    text = json.dumps(header).encode()
    file.unlink()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def _index(case: Mutation) -> None:
    case.spoil_json(case.copied("sharded") / "model.safetensors.index.json", ("weight_map", "metadata"))


def _gguf(case: Mutation) -> None:
    file = case.folder / "model.gguf"
    shutil.copyfile(case.materials / "model.gguf", file)
    case.model = str(file)
    content = bytearray(file.read_bytes())
    if case.random.random() < 0.5:
        case.spoil_bytes(file, 12_000)
        return
    names = (
        b"context_length",
        b"embedding_length",
        b"block_count",
        b"head_count",
        b"dimension_count",
        b"freq_base",
        b"general.file_type",
    )
    name = case.random.choice(names)
    place = content.find(name) + len(name) + 4  # behind the name stand its type and value
    value = case.random.choice((0, 1, 2, 3, 15, 17, 2**16, 2**24, 2**31, 2**32 - 1))
    content[place : place + 4] = struct.pack("<I", value)
    case.what.append(f"{name.decode()} = {value}")
    file.write_bytes(content)


def _factors(case: Mutation) -> None:
    file = case.folder / case.random.choice(("factors.json", "config.json", "table.json", "list.json"))
    if file.name == "config.json":
        shutil.copyfile(case.materials / "phi3" / "config.json", file)
    elif file.name == "list.json":
        file.write_text(json.dumps([1.0, 1.0, 1.2, 1.5, 1.7, 1.9, 2.0, 2.0]))
    else:
        entry = {"id": "llama", "architecture": "LlamaForCausalLM", "rope_theta": 1e4, "rotary_dim": 16}
        known = {"original_length": 64, "base_rope_type": "default"}
        table = {"model": entry | known, "target_length": 128, "rescale_factors": [1.0] * 6 + [2.0, 2.0]}
        whole = {"schema": "factor-search/factors@1", "scale": 2.0, "initial_tokens": 0, "attention_factor": 1.0}
        file.write_text(json.dumps(table | (whole if file.name == "factors.json" else {})))
    case.factors = str(file)
    case.what.append(file.name)
    case.spoil_json(file)


def _parquet(case: Mutation) -> None:
    import pyarrow
    from pyarrow import parquet

    file = case.folder / "documents.parquet"
    texts = [f"Row {number}. " + "some words and more " * 20 for number in range(12)]
    column: Any = {0: texts, 1: [None, *texts], 2: [1, 2, 3], 3: [[text] for text in texts]}[case.random.randrange(4)]
    name = case.random.choice(("text", "text", "text", "other"))
    parquet.write_table(pyarrow.table({name: column}), file)
    case.files = [str(file)]
    if case.random.random() < 0.8:
        case.spoil_bytes(file)


def _json_lines(case: Mutation) -> None:
    file = case.folder / "documents.jsonl"
    lines = [json.dumps({"text": f"Row {number}. " + "some words and more " * 20}) for number in range(12)]
    for _ in range(case.random.choice((1, 1, 3))):
        value = case.value()
        deep = "[" * NESTED + "]" * NESTED
        changed = (json.dumps({"text": value}), json.dumps(value), '{"text": ' + deep + "}", '{"text": "a', "", "\x00")
        lines[case.random.randrange(len(lines))] = case.random.choice(changed)
        case.what.append(f"text = {value!r:.40}")
    file.write_text("\n".join(lines), encoding="utf-8")
    case.files = [str(file)]
    if case.random.random() < 0.3:
        case.spoil_bytes(file)


WRITERS: dict[str, Callable[[Mutation], None]] = {
    "config.json": _config,
    "generation_config.json": _json_of("generation_config.json", "max_length", "eos_token_id", "cache_implementation"),
    "tokenizer.json": _json_of("tokenizer.json", "padding", "truncation", "added_tokens", "model", "normalizer"),
    "tokenizer_config.json": _json_of(
        "tokenizer_config.json", "model_max_length", "tokenizer_class", "auto_map", "bos_token"
    ),
    "companion files": _companion,
    "safetensors": _safetensors,
    "index": _index,
    "GGUF": _gguf,
    "factors": _factors,
    "parquet": _parquet,
    "JSON lines": _json_lines,
}
KINDS = ("config.json", "safetensors", "config.json", *WRITERS)
"""The kinds in their order; configurations have the most fields."""
