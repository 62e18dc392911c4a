"""Builds the tokenizer of a GGUF file, so that a text becomes the same tokens as in llama.cpp.

transformers knows the vocabulary, but not how every one of them splits a text, and when a text begins with a space or
with BOS.
"""

from pathlib import Path
from typing import Any

from factor_search.errors import ModelLoadError
from factor_search.files.gguf import read_header

WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano")
"""Pre-tokenizers with which a word of the vocabulary is one token, whatever the merges say; they begin with BOS."""
GPT2_SPLIT = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "trillion", "granite-docling", "modern-bert")
DIGIT_SPLIT = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
QWEN2_SPLIT = ("stablelm2", "hunyuan", "solar-open")
"""Pre-tokenizers that split like one of these models; transformers leaves its default in place."""
DEFAULT_SPLITS = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)
"""What llama.cpp splits by, one after the other, where a file does not name its pre-tokenizer."""


def gguf_tokenizer(file: Path) -> Any:
    """The tokenizer that a GGUF file describes.

    Raises:
        ModelLoadError: the file is broken, or its pre-tokenizer is unknown, so tokens would not be llama.cpp's.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    header = read_header(file)
    if "tokenizer.ggml.tokens" not in header.metadata:
        raise ModelLoadError(f"{file} has no vocabulary, so texts cannot become tokens: give a whole model")
    architecture, described, configured = get_gguf_tokenizer(str(file))
    backend, _ = convert_gguf_tokenizer(architecture, described)
    pre = header.get("tokenizer.ggml.pre", "default")
    if described.get("tokenizer_type") == "gpt2":
        _split_like_llama_cpp(backend, pre, file)
    elif described.get("tokenizer_type") == "llama" and not architecture.startswith("gemma"):
        _space_like_llama_cpp(backend, described.get("add_prefix_space", True))
    options = {key: value for key, value in configured.items() if value is not None and not key.startswith("add_")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **options)
    tokenizer.model_max_length = int(header.get("{arch}.context_length") or tokenizer.model_max_length)
    _add_bos(tokenizer, configured.get("add_bos_token", pre in WHOLE_WORDS))
    return tokenizer


def _split_like_llama_cpp(backend: Any, pre: str, file: Path) -> None:
    """Set how a text is split before merges are applied, where transformers leaves its default in place."""
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    unsplit = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def split(*patterns: str) -> list[Any]:
        return [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]

    if pre in DIGIT_SPLIT:
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    elif pre in GPT2_SPLIT:
        backend.pre_tokenizer = plain
    elif pre in QWEN2_SPLIT:
        backend.pre_tokenizer = pre_tokenizers.Sequence([*split(GGUF_PRE_TOKENIZER_SPLITS["qwen2"]), unsplit])
    elif pre == "default":
        backend.pre_tokenizer = pre_tokenizers.Sequence([*split(*DEFAULT_SPLITS), unsplit])
    elif pre not in GGUF_PRE_TOKENIZER_SPLITS:
        raise ModelLoadError(
            f"{file} has the pre-tokenizer {pre!r}, which is not known here: texts would become other tokens than in "
            "llama.cpp: give the Hugging Face folder of the model, and export with --model FILE.gguf"
        )
    if pre in WHOLE_WORDS:
        backend.model.ignore_merges = True


def _space_like_llama_cpp(backend: Any, prefix: bool) -> None:
    """Let a sentencepiece text begin with one space more, also where it begins with a space already."""
    from tokenizers import normalizers

    spaces = normalizers.Replace(pattern=" ", content="\u2581")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if prefix else spaces
    backend.pre_tokenizer = None


def _add_bos(tokenizer: Any, wanted: bool) -> None:
    """Let a text begin with BOS exactly where llama.cpp puts it."""
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token
    if wanted and bos is not None:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    else:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A:0", pair="$A:0 $B:1")
