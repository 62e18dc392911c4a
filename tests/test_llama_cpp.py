"""llama.cpp computes what transformers computes with the same factors, and what its files are read to mean."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import PreTrainedModel

from bench.gguf_writer import Q4_1, Q8_0, write_model
from factor_search.errors import ExportError, VerificationError
from factor_search.export.contract import Source
from factor_search.export.gguf import patched
from factor_search.export.registry import export
from factor_search.export.verification.llama_cpp import LlamaCpp
from factor_search.export.verification.llama_cpp_process import start
from factor_search.factors import Factors
from factor_search.factors_file import FactorsModel, factors_file
from factor_search.files.gguf import (
    ARRAY,
    FLOAT32,
    STRING,
    UINT32,
    Entry,
    Header,
    f32_tensor,
    number_entry,
    read_header,
    text_entry,
    write_gguf,
)
from factor_search.methods import closed_form, yarn_of_numbers
from factor_search.model.configuration import read_geometry
from factor_search.model.gguf_rope import IGNORE_FREQS, READ_FREQS
from factor_search.model.injection import Injector
from factor_search.model.loading import load_model, load_tokenizer
from factor_search.spec import ModelSpec
from tests.families import tiny_model

pytest.importorskip("xllamacpp")
LENGTH, TARGET = 240, 256
MODEL = FactorsModel(
    id="m",
    architecture="LlamaForCausalLM",
    rope_theta=10_000,
    rotary_dim=16,
    original_length=64,
    base_rope_type="default",
)
IDS = torch.randint(0, 256, (1, LENGTH), generator=torch.Generator().manual_seed(4))
POSITIONS = [*range(96, 216, 4), LENGTH - 2, LENGTH - 1]
Bars = tuple[float, float, float]
BARS: Bars = (5e-5, 3e-4, 2e-3)
"""Mean, 99 % and largest difference of log-probabilities, in nats."""


def transformers_scores(model: PreTrainedModel, factors: Factors | None = None) -> np.ndarray[Any, Any]:
    """Log-probabilities with factors injected; with None, of the model as it is."""
    rows = [factors] if factors else []
    with torch.inference_mode(), Injector(model, read_geometry(model.config)) as injector, injector.using(rows):
        scores = torch.log_softmax(model(IDS).logits[0].double(), dim=-1)
    return np.array([scores[p - 1, IDS[0, p]].item() for p in POSITIONS])


def engine_scores(file: Path) -> np.ndarray[Any, Any]:
    return np.array(LlamaCpp().log_probabilities(file, IDS[0].tolist(), POSITIONS))


def differences(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> Bars:
    off = np.abs(one - other)
    return off.mean(), np.quantile(off, 0.99), off.max()


def biased(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.3)
    return model


@pytest.mark.parametrize("architecture", ["llama", "phi3", "qwen2"])
def test_a_patched_file_computes_with_the_factors(architecture: str, tmp_path: Path) -> None:
    model = biased(tiny_model(architecture, vocab_size=257))
    source = write_model(tmp_path / "m.gguf", model, architecture)
    geometry = read_geometry(model.config, 64)
    factors = Factors.of([round(1.0 + 0.43 * i, 2) for i in range(geometry.pairs)], 0, 1.17)
    file = factors_file(factors, FactorsModel.of("m", None, geometry), TARGET)
    (out,) = export("gguf", Source(file, ModelSpec(id=str(source))), tmp_path / "out.gguf", nearest=True).files
    scores, injected = engine_scores(out), transformers_scores(model, factors)
    assert all(np.array(differences(scores, injected)) <= BARS)
    assert differences(scores, transformers_scores(model))[2] > 0.5
    again = load_model(ModelSpec(id=str(out)))  # a qwen2 has become a llama
    assert all(np.array(differences(transformers_scores(again.model), injected)) <= BARS)
    assert again.model.config.rope_parameters["long_factor"] == list(factors.rescale_factors)
    assert (again.geometry.original_length, again.geometry.configured_length) == (64, TARGET)


FREQS = {"rope_freqs.weight": np.array([1 + 0.7 * i for i in range(8)], "float32")}
PAIR = {
    "rope_factors_long.weight": np.array([1 + 0.7 * i for i in range(8)], "float32"),
    "rope_factors_short.weight": np.array([1 + 0.1 * i for i in range(8)], "float32"),
}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
SCALINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "linear": ("llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {}, "linear"),
    "the old name": ("llama", {"rope.scale_linear": 4.0}, {}, "linear"),
    "a type that says none": ("llama", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {}, "default"),
    "linear with an attention factor": (
        "llama",
        {"rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 1.2},
        {},
        "longrope",
    ),
    "an attention factor alone": ("llama", {"rope.scaling.attn_factor": 1.2}, {}, "longrope"),
    "yarn": ("llama", YARN, {}, "yarn"),
    "yarn with an attention factor": ("llama", YARN | {"rope.scaling.attn_factor": 1.2}, {}, "yarn"),
    "yarn with betas, which are not read": (
        "llama",
        YARN | {"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0},
        {},
        "yarn",
    ),
    "yarn on a small model of another architecture": ("qwen2", YARN, {}, "yarn"),
    "frequencies as in Llama 3.1": ("llama", {}, FREQS, "longrope"),
    "frequencies and linear": ("llama", {"rope.scaling.factor": 2.0}, FREQS, "longrope"),
    "frequencies and yarn": ("llama", YARN, FREQS, "longrope"),
    "longrope without factors": (
        "llama",
        {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": 1.2},
        {},
        "longrope",
    ),
    "a pair in a llama": (
        "llama",
        {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 64},
        PAIR,
        "longrope",
    ),
    "a pair": (
        "phi3",
        {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.19},
        PAIR,
        "longrope",
    ),
}


@pytest.mark.parametrize(("architecture", "extra", "tensors", "rope_type"), SCALINGS.values(), ids=SCALINGS)
def test_a_scaling_is_read_as_llama_cpp_reads_it(
    architecture: str, extra: dict[str, Any], tensors: dict[str, Any], rope_type: str, tmp_path: Path
) -> None:
    model = biased(tiny_model(architecture, vocab_size=257))
    file = write_model(tmp_path / "m.gguf", model, architecture, extra=extra, tensors=tensors, context_length=TARGET)
    loaded = load_model(ModelSpec(id=str(file)))
    scores = engine_scores(file)
    assert all(np.array(differences(scores, transformers_scores(loaded.model))) <= BARS)
    assert loaded.geometry.base_rope_type == rope_type
    if rope_type != "default":
        assert differences(scores, transformers_scores(model))[2] > 0.1
        as_configured = closed_form("as-configured", loaded.geometry, TARGET)
        assert all(np.array(differences(scores, transformers_scores(model, as_configured))) <= BARS)


def test_llama_cpp_takes_the_short_factors_in_a_short_context(tmp_path: Path) -> None:
    model = tiny_model("phi3", vocab_size=257, max_position_embeddings=256, original_max_position_embeddings=256)
    source = ModelSpec(id=str(write_model(tmp_path / "m.gguf", model, "phi3")))
    geometry = read_geometry(model.config)
    of, long = FactorsModel.of("m", None, geometry), Factors.of([1.0 + i for i in range(8)], 0, 1.1)
    short = Factors.of([1.0 + 0.2 * i for i in range(8)], 0, 1.1)
    pair = Source(factors_file(long, of, 1024), source, factors_file(short, of, 256))
    (out,) = export("gguf", pair, tmp_path / "out.gguf").files
    assert all(np.array(differences(engine_scores(out), transformers_scores(model, short))) <= BARS)
    longer = IDS.repeat(1, 2)[0].tolist()
    with torch.inference_mode(), Injector(model, geometry) as injector, injector.using([long]):
        scores = torch.log_softmax(model(torch.tensor([longer])).logits[0].double(), dim=-1)
    theirs = LlamaCpp().log_probabilities(out, longer, [400, 479])
    assert theirs == pytest.approx([scores[p - 1, longer[p]].item() for p in (400, 479)], abs=2e-3)


LOADABLE: dict[str, Entry] = {
    "attention.key_length": number_entry(16, UINT32),
    "attention.value_length": number_entry(16, UINT32),
    "attention.scale": number_entry(0.25, FLOAT32),
    "embedding_scale": number_entry(1.0, FLOAT32),
    "residual_scale": number_entry(1.0, FLOAT32),
    "logit_scale": number_entry(1.0, FLOAT32),
}
"""What the one or the other architecture wants to know."""
XIELU = Entry(ARRAY, None, struct.pack("<IIQ2f", ARRAY, FLOAT32, 2, 0.8, 0.8))
READING = {
    **dict.fromkeys(("llama", "deci", "exaone", "granite", "granitemoe", "mistral3", "minicpm"), "reads"),
    **dict.fromkeys(("arcee", "apertus"), "reads"),
    **dict.fromkeys(("qwen2", "qwen3", "internlm2", "smollm3", "xverse"), "refuses"),
    "pangu-embedded": "ignores",
}


def loadable(architecture: str, file: Path) -> Header:
    """A llama that says that it is of another architecture, with the parts that this architecture wants."""
    header = read_header(write_model(file, tiny_model("llama", vocab_size=257)))
    metadata = {key.replace("llama.", f"{architecture}."): entry for key, entry in header.metadata.items()}
    metadata |= {f"{architecture}.{key}": entry for key, entry in LOADABLE.items()}
    metadata["general.architecture"] = text_entry(architecture)
    tensors = list(header.tensors)
    if architecture in ("arcee", "apertus"):
        tensors = [tensor for tensor in tensors if ".ffn_gate." not in tensor.name]
    for block in (0, 1):
        if architecture in ("apertus", "qwen3"):
            tensors += [f32_tensor(f"blk.{block}.attn_{part}_norm.weight", [1.0] * 16) for part in "qk"]
        if architecture == "pangu-embedded":
            tensors.append(f32_tensor(f"blk.{block}.attn_output.bias", [0.0] * 64))
    if architecture == "apertus":
        metadata |= {f"xielu.{name}": XIELU for name in ("alpha_n", "alpha_p", "beta", "eps")}
    return replace(header, metadata=metadata, tensors=tuple(tensors))


@pytest.mark.parametrize(("architecture", "wanted"), READING.items())
def test_what_llama_cpp_does_with_factors_by_architecture(architecture: str, wanted: str, tmp_path: Path) -> None:
    plain, factored = tmp_path / "plain.gguf", tmp_path / "factored.gguf"
    header = loadable(architecture, tmp_path / "llama.gguf")
    write_gguf(header, plain)
    file = factors_file(Factors.of([1.0 + 0.5 * i for i in range(8)]), MODEL, TARGET)
    write_gguf(patched(header, file), factored)
    takes = architecture in READ_FREQS
    assert takes == (wanted == "reads")
    assert (architecture in IGNORE_FREQS) == (wanted == "ignores")
    ids, positions = IDS[0].tolist(), [30, 60]
    before = LlamaCpp().log_probabilities(plain, ids, positions)
    if wanted == "refuses":
        with pytest.raises(VerificationError, match=r"wrong number of tensors|Failed to init server"):
            LlamaCpp().log_probabilities(factored, ids, positions)
    else:
        after = LlamaCpp().log_probabilities(factored, ids, positions)
        assert (np.abs(np.array(after) - before).max() > 1e-3) == takes


@pytest.mark.parametrize("kind", ["absent", "no GGUF file", "refused", "aborted", "too short"])
def test_what_llama_cpp_cannot_load_is_one_line(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    if kind == "no GGUF file":
        file.write_text("no model")
    elif kind == "refused":
        write_model(file, tiny_model("qwen2", vocab_size=257), "qwen2", tensors=FREQS)
    elif kind == "aborted":
        half = {name: values.astype("float16") for name, values in FREQS.items()}
        write_model(file, tiny_model("llama", vocab_size=257), tensors=half)
    elif kind == "too short":
        write_model(file, tiny_model("llama", vocab_size=257))
    with pytest.raises(VerificationError, match=f"llama.cpp cannot score with {file}: .") as error:
        LlamaCpp().log_probabilities(file, IDS[0].tolist() * 4, [900])
    assert "\n" not in str(error.value)
    assert ("SIGABRT" in str(error.value)) == (kind == "aborted")


def test_a_folder_with_one_file_is_that_file(tmp_path: Path) -> None:
    file = write_model(tmp_path / "m.gguf", tiny_model("llama", vocab_size=257))
    ids, positions = IDS[0].tolist(), [40, 8]
    scores = LlamaCpp().log_probabilities(tmp_path, ids, positions)
    assert scores == LlamaCpp().log_probabilities(file, ids, positions)
    assert scores[::-1] == pytest.approx(LlamaCpp().log_probabilities(file, ids, positions[::-1]), abs=1e-5)
    (tmp_path / "other.gguf").touch()
    with pytest.raises(VerificationError, match="has 2 GGUF files, not one"):
        LlamaCpp().log_probabilities(tmp_path, ids, positions)
    assert LlamaCpp().version()


@pytest.mark.parametrize("kind", [Q4_1, Q8_0], ids=["Q4_1", "Q8_0"])
def test_quantised_weights_are_compared_as_f32(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    """With quantised weights llama.cpp rounds activations, so it can only be near."""
    file = write_model(tmp_path / "m.gguf", tiny_model("llama", vocab_size=257), quantised=kind)
    loaded = load_model(ModelSpec(id=str(file), dtype="float32"))
    factors = Factors.of([1.0 + 0.4 * i for i in range(8)], 0, 1.1)
    found = factors_file(factors, FactorsModel.of("m", None, loaded.geometry), TARGET)
    (out,) = export("gguf", Source(found, loaded.spec), tmp_path / "out.gguf").files
    injected = transformers_scores(loaded.model, factors)
    exact = np.array(LlamaCpp(as_f32=True).log_probabilities(out, IDS[0].tolist(), POSITIONS))
    assert all(np.array(differences(exact, injected)) <= BARS)
    near = differences(engine_scores(out), injected)
    assert 1e-3 < near[0] < 0.2
    assert near[0] < 0.3 * differences(engine_scores(out), transformers_scores(loaded.model))[0]


TEXT = "In the year 1984 the best of times, and the worst of times; then the rest of the tale. "
LINES = [
    TEXT,
    "  two  spaces   three    four",
    "x\n\ny\n  z\t",
    "naïve 漢字 😀",
    "Hello",
    " the",
    "the 12,345.67 times!",
]


def strings(values: list[str]) -> Entry:
    packed = b"".join(struct.pack("<Q", len(value.encode())) + value.encode() for value in values)
    return Entry(ARRAY, None, struct.pack("<IIQ", ARRAY, STRING, len(values)) + packed)


def numbers(values: list[Any], kind: int, letter: str) -> Entry:
    return Entry(ARRAY, None, struct.pack(f"<IIQ{len(values)}{letter}", ARRAY, kind, len(values), *values))


def sentencepiece(prefix: bool, bos: bool) -> tuple[int, dict[str, Entry]]:
    """The size and the metadata of a vocabulary with byte tokens, letters, and pieces of the text."""
    spaced = "▁" + TEXT.replace(" ", "▁")
    known, pieces = set(spaced), []
    for length in range(2, 7):
        for first in range(len(spaced) - length + 1):
            piece = spaced[first : first + length]
            if piece not in known and piece[:-1] in known:
                known.add(piece)
                pieces.append(piece)
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *sorted(set(spaced))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(words) - 259)
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(words) - 259)]
    return len(words), {
        "tokenizer.ggml.model": text_entry("llama"),
        "tokenizer.ggml.tokens": strings(words),
        "tokenizer.ggml.scores": numbers(scores, FLOAT32, "f"),
        "tokenizer.ggml.token_type": numbers(kinds, 5, "i"),
        **{f"tokenizer.ggml.{name}_token_id": number_entry(id, UINT32) for name, id in SPECIAL.items()},
        "tokenizer.ggml.add_space_prefix": number_entry(prefix, 7),
        "tokenizer.ggml.add_bos_token": number_entry(bos, 7),
    }


SPECIAL = {"unknown": 0, "bos": 1, "eos": 2}


@pytest.mark.parametrize(("prefix", "bos"), [(True, True), (False, False)])
@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_texts_become_the_tokens_of_llama_cpp(kind: str, prefix: bool, bos: bool, tmp_path: Path) -> None:
    size, vocabulary = sentencepiece(prefix, bos)
    if kind == "bytes":
        size, vocabulary = 257, {"tokenizer.ggml.add_bos_token": number_entry(bos, 7)}
    header = read_header(write_model(tmp_path / "m.gguf", tiny_model("llama", vocab_size=size), context_length=512))
    metadata = {**header.metadata, **vocabulary}
    if kind == "sentencepiece":
        del metadata["tokenizer.ggml.merges"]
    write_gguf(replace(header, metadata=metadata), tmp_path / "m.gguf")
    tokenizer = load_tokenizer(ModelSpec(id=str(tmp_path / "m.gguf")))
    server = start(str(tmp_path / "m.gguf"), 300, 1, str(tmp_path / "socket"))

    letter = tokenizer("e", add_special_tokens=False).input_ids[-1]
    request = {
        "n_predict": 1,
        "n_probs": size,
        "cache_prompt": False,
        "temperature": 0.0,
        "logit_bias": [[letter, 100]],
    }

    def next_after(prompt: str | list[int]) -> tuple[int, list[float]]:
        """The number of tokens, and the log-probabilities of the next word, which tell prompts apart.

        A letter is forced: nothing is reported of half a letter, nor of the end of the text.
        """
        answer = server.handle_completions(request | {"prompt": prompt})
        listed = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return answer["usage"]["prompt_tokens"], [one["logprob"] for one in listed]

    for line in LINES:
        ids = tokenizer(line).input_ids
        of_text, of_ids = next_after(line), next_after(ids)
        assert of_text[0] == of_ids[0] == len(ids)
        assert of_text[1] == pytest.approx(of_ids[1], abs=1e-4)
        assert len(of_text[1]) > 200
    assert (tokenizer("the").input_ids[0] == tokenizer.bos_token_id) == bos


@pytest.mark.parametrize(("kind", "factor"), [("yarn", 3.2), ("yarn", 1.0), ("base", 1.0)])
def test_an_architecture_without_lists_computes_with_the_numbers_of_a_form(
    kind: str, factor: float, tmp_path: Path
) -> None:
    model = biased(tiny_model("qwen2", vocab_size=257))
    source, geometry = write_model(tmp_path / "m.gguf", model, "qwen2"), read_geometry(model.config, 64)
    numbers = {"factor": factor, "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.2, "rope_theta": 25_000.0}
    if kind == "base":
        numbers |= {"attention_factor": 1.0}
    factors = yarn_of_numbers(geometry, **numbers)
    model_of = FactorsModel.of("m", None, geometry)
    file = factors_file(factors, model_of, TARGET, form={"kind": kind, **numbers})
    exported = export("gguf", Source(file, ModelSpec(id=str(source))), tmp_path / "out.gguf")
    assert ("--yarn-beta-fast 32 --yarn-beta-slow 1" in str(exported.command)) == (kind == "yarn")
    (out,) = exported.files
    scores = engine_scores(out)
    assert all(np.array(differences(scores, transformers_scores(model, factors))) <= BARS)
    assert differences(scores, transformers_scores(model))[2] > 0.1
    lists = Source(factors_file(factors, model_of, TARGET), ModelSpec(id=str(source)))
    with pytest.raises(ExportError, match="the nearest is the same model rewritten as architecture llama"):
        export("gguf", lists, tmp_path / "other.gguf")
