"""Exports factors into the GGUF file of the model, for llama.cpp and all that build on it.

The file in hand gets the factors, and every other tensor stays as it is, byte by byte, in the same quantisation. No
converter is needed. llama.cpp divides theta_i by ``rope_freqs.weight``, so it contains lambda_i itself. Some
architectures read a pair of long and short factors instead, and llama.cpp chooses between them by the length of the
context that a user asks for.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from factor_search.errors import ExportError, FactorsError, ModelError, OutputError
from factor_search.export.configuration import check_short, form_of
from factor_search.export.contract import Engine, Exported, Limit, Source
from factor_search.export.huggingface import initial_tokens_limit
from factor_search.factors_file import FactorsFile, Form
from factor_search.files.gguf import (
    FLOAT32,
    UINT32,
    Entry,
    Header,
    Tensor,
    f32_tensor,
    is_gguf,
    number_entry,
    read_header,
    text_entry,
    write_gguf,
)
from factor_search.model.gguf_rope import (
    FREQS,
    IGNORE_FREQS,
    LONG,
    READ_FREQS,
    READ_PAIR,
    SHORT,
    FileRope,
    read_rope,
    shortest,
)
from factor_search.model.yarn import yarn_attention_factor
from factor_search.spec import ModelSpec

YARN_ROTATIONS = (32.0, 1.0)
"""Ends of YaRN's ramp that llama.cpp takes without options."""
REWRITTEN = "qwen2"
"""The architecture that can be rewritten as ``llama``: the same but for the order of rows in q and k."""


@dataclass(frozen=True)
class AsLlama(Source):
    """A source whose file is to be rewritten as architecture ``llama``."""


class Gguf(Engine):
    """The model's GGUF file with the factors in it."""

    name = "gguf"
    title = "llama.cpp"
    writes = "the model's GGUF file with the factors in it"
    document_name = None
    out_name = "extended.gguf"
    model_name = "model.gguf"

    def check(self, source: Source) -> None:
        """The model must be a GGUF file of an architecture whose factors llama.cpp reads."""
        header, rope = _read(source)
        if form_without_lists(source.file, source.short, header.architecture) is None:
            _check_architecture(header)
        else:
            form_of(source.file, source.geometry)
        _check_reach(source)
        for file in (source.file, source.short):
            if file is not None:
                _check_belongs(file, header, rope)
        if source.short is not None:
            check_short(source.file, source.short, "llama.cpp")

    def limits(self, source: Source) -> list[Limit]:
        """No initial tokens; one list for all inputs but for a few architectures; ``qwen2`` only as ``llama``."""
        architecture = _read(source)[0].architecture
        limits = initial_tokens_limit(source, "llama.cpp")
        if source.short is not None and architecture not in READ_PAIR:
            reason = f"the factors switch at the original length, which llama.cpp cannot do for {architecture}"
            limits.append(Limit(reason, "the long factors for all inputs", lambda source: replace(source, short=None)))
        form = form_without_lists(source.file, source.short, architecture)
        if architecture == REWRITTEN and form is None and not isinstance(source, AsLlama):
            reason = f"llama.cpp refuses files of architecture {REWRITTEN} with factors"
            nearest = "the same model rewritten as architecture llama, which computes the same"
            limits.append(
                Limit(reason, nearest, lambda source: AsLlama(source.file, source.model, source.short, source.check))
            )
        return limits

    def load_command(self, model: ModelSpec, target_length: int, out: Path) -> str:
        """Starts llama.cpp on the file."""
        return shlex.join(["llama-cli", "-m", str(out), "-c", str(target_length)])

    def write(self, source: Source, out: Path) -> Exported:
        """The whole file; ``out`` is a name that ends in .gguf, or the folder for a file named after the length."""
        header, _ = _read(source)
        target = source.file.target_length
        if not is_gguf(str(out)):
            out = _folder(out) / f"{header.file.stem}-{target}.gguf"
        if out.exists():
            raise OutputError(f"{out} exists: choose another --out")
        write_gguf(patched(header, source.file, source.short, as_llama=isinstance(source, AsLlama)), out)
        notes = [
            "Options of the engine that scale RoPE (--rope-scaling, --rope-freq-scale, --yarn-...) would change this."
        ]
        if source.short is not None:
            notes = ["llama.cpp takes the long factors if the context that -c asks for is beyond the original length."]
        command = self.load_command(source.model, target, out)
        form = form_without_lists(source.file, source.short, header.architecture)
        if form is not None and form.kind == "yarn":
            command += f" --yarn-beta-fast {form.beta_fast:g} --yarn-beta-slow {form.beta_slow:g}"
            notes = [
                "llama.cpp reads the rotations at the ends of YaRN's ramp from its command line alone: without these "
                "options it takes 32 and 1."
            ]
        if isinstance(source, AsLlama):
            notes.append("The file says architecture llama; its weights are the same, in another order of rows.")
        return Exported([out], command, notes)


def patched(header: Header, file: FactorsFile, short: FactorsFile | None = None, as_llama: bool = False) -> Header:
    """Return the header and tensors of a file with these factors in place of its own scaling.

    Args:
        header: of the model's file.
        file: the factors, for all inputs or for those beyond the original length.
        short: the factors up to the original length, for the architectures that switch.
        as_llama: rewrite a ``qwen2`` as ``llama``.
    """
    if as_llama:
        header = _rewritten(header)
    architecture = header.architecture
    scaling: dict[str, Entry] = {
        "attn_factor": number_entry(file.attention_factor, FLOAT32),
        "original_context_length": number_entry(file.model.original_length, UINT32),
    }
    own = [f32_tensor(FREQS, file.rescale_factors)]
    if (form := form_without_lists(file, short, architecture)) is not None:
        scaling, own = _scaling_of(form, file.model.original_length), []
    elif architecture in READ_PAIR:
        scaling["type"] = text_entry("longrope")
        own = [f32_tensor(LONG, file.rescale_factors), f32_tensor(SHORT, (short or file).rescale_factors)]
    prefix = f"{architecture}.rope.scal"  # scaling.* and the older scale_linear
    metadata = {key: entry for key, entry in header.metadata.items() if not key.startswith(prefix)}
    length = max(file.target_length, int(header.get("{arch}.context_length")))
    metadata[f"{architecture}.context_length"] = number_entry(length, UINT32)
    metadata |= {f"{architecture}.rope.scaling.{key}": entry for key, entry in scaling.items()}
    if form is not None:
        metadata[f"{architecture}.rope.freq_base"] = number_entry(form.rope_theta, FLOAT32)
    return replace(header, metadata=metadata, tensors=_exchanged(header.tensors, own))


def form_without_lists(file: FactorsFile, short: FactorsFile | None, architecture: str) -> Form | None:
    """Return the form in place of lists, where llama.cpp does not read lists for an architecture."""
    if short is not None or architecture in (*READ_FREQS, *READ_PAIR):
        return None
    return file.form


def _scaling_of(form: Form, original_length: int) -> dict[str, Entry]:
    """The keys of YaRN's numbers; llama.cpp multiplies the attention factor by YaRN's formula itself."""
    if form.kind == "base":
        return {}
    attention = form.attention_factor / yarn_attention_factor(form.factor)
    return {
        "type": text_entry("yarn"),
        "factor": number_entry(form.factor, FLOAT32),
        "original_context_length": number_entry(original_length, UINT32),
        "yarn_beta_fast": number_entry(form.beta_fast, FLOAT32),
        "yarn_beta_slow": number_entry(form.beta_slow, FLOAT32),
        "attn_factor": number_entry(attention, FLOAT32),
    }


def _exchanged(tensors: Sequence[Tensor], own: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors with other factors: in the place of the old ones, or at the end."""
    new = {tensor.name: tensor for tensor in own}
    kept = [new.pop(tensor.name, tensor) for tensor in tensors if tensor.name in new or not _holds_factors(tensor)]
    return (*kept, *new.values())


def _holds_factors(tensor: Tensor) -> bool:
    return tensor.name in (FREQS, LONG, SHORT)


def _rewritten(header: Header) -> Header:
    """The same model as architecture ``llama``, which rotates neighbouring dimensions.

    ``qwen2`` rotates dimension i of a head together with i + d/2. Since quantised blocks run along rows, exchanging
    rows of q and k is exact.
    """
    metadata: Mapping[str, Entry] = {
        f"llama{key.removeprefix(REWRITTEN)}" if key.startswith(f"{REWRITTEN}.") else key: entry
        for key, entry in header.metadata.items()
    }
    metadata = {**metadata, "general.architecture": text_entry("llama")}
    heads, rope = int(header.get("{arch}.attention.head_count")), read_rope(header)
    assert rope is not None
    counts = {"attn_q": heads, "attn_k": int(header.get("{arch}.attention.head_count_kv", heads))}
    tensors = []
    for tensor in header.tensors:
        part = next((part for part in counts if f".{part}." in tensor.name), None)
        rows = _interleaved(counts[part], rope.head_dim) if part else None
        tensors.append(replace(tensor, rows=rows))
    return replace(header, metadata=metadata, tensors=tuple(tensors))


def _interleaved(heads: int, head_dim: int) -> tuple[int, ...]:
    """Where the rows of ``llama`` are in ``qwen2``: for each head 0, d/2, 1, d/2 + 1, ..."""
    half = head_dim // 2
    return tuple(head * head_dim + i + half * part for head in range(heads) for i in range(half) for part in (0, 1))


def _read(source: Source) -> tuple[Header, FileRope]:
    if not is_gguf(source.model.id):
        raise ExportError(
            f"the factors are written into a GGUF file of the model, but {source.model.id} is not one: give it with "
            "--model FILE.gguf; factors that were found on the Hugging Face checkpoint fit it"
        )
    header = read_header(Path(source.model.id))
    rope = read_rope(header)
    if rope is None:
        raise ExportError(f"{header.file} describes no attention heads or no context length, so nothing can be scaled")
    return header, rope


def _check_reach(source: Source) -> None:
    """Check that a rotated layer sees beyond the original length, or the file would promise a length that none sees.

    Raises:
        ExportError: none does, as far as transformers reads the file.
    """
    try:
        reason = source.geometry.no_longer_context
    except ModelError:  # transformers reads fewer architectures than llama.cpp
        return
    if reason is not None:
        raise ExportError(reason)


def _check_architecture(header: Header) -> None:
    architecture = header.architecture
    if architecture in (*READ_FREQS, *READ_PAIR, REWRITTEN):
        return
    takes = f"it reads them for {', '.join((*READ_FREQS, *READ_PAIR))}"
    if architecture in IGNORE_FREQS:
        raise ExportError(f"llama.cpp would load {architecture} with factors, but ignore them: {takes}")
    raise ExportError(f"llama.cpp refuses files of architecture {architecture} with factors: {takes}")


def _check_belongs(file: FactorsFile, header: Header, rope: FileRope) -> None:
    """Check that factors fit the file; a base in a GGUF file is a float32."""
    for name, theirs, ours in (
        ("rotary_dim", file.model.rotary_dim, rope.rotary_dim),
        ("rope_theta", shortest(file.model.rope_theta), rope.rope_theta),
    ):
        if theirs != ours:
            raise FactorsError(
                f"the factors are for {name} {theirs:g} ({file.model.id}), but {header.file.name} has {ours:g}: they "
                "belong to another model"
            )


def _folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from None
    return out
