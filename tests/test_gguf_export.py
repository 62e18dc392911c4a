"""Factors in a GGUF file: what changes, what stays byte for byte, and what is refused before anything is written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader

from bench.gguf_writer import Q4_1, write_model
from factor_search.errors import ExportError, FactorSearchError, FactorsError, OutputError
from factor_search.export.contract import Source
from factor_search.export.registry import ENGINES, engine_named, export, expressible
from factor_search.factors import Factors
from factor_search.factors_file import FactorsFile, FactorsModel, factors_file
from factor_search.files.gguf import Tensor, read_header
from factor_search.model.gguf_rope import IGNORE_FREQS, READ_FREQS, READ_PAIR, read_rope
from factor_search.spec import ModelSpec
from tests.families import tiny_model
from tests.gguf_files import file_of

LAMBDAS = [1.0, 1.13, 1.5, 2.0, 2.75, 3.33, 4.0, 6.5]
MODEL = FactorsModel(
    id="m",
    architecture="LlamaForCausalLM",
    rope_theta=10_000,
    rotary_dim=16,
    original_length=64,
    base_rope_type="default",
)


def found(lambdas: list[float] = LAMBDAS, target: int = 256, **values: Any) -> FactorsFile:
    attention, initial = values.pop("attention_factor", 1.17), values.pop("initial_tokens", 0)
    return factors_file(Factors.of(lambdas, initial, attention), MODEL.model_copy(update=values), target)


def source_of(file: Path, found: FactorsFile | None = None, short: FactorsFile | None = None) -> Source:
    return Source(found or globals()["found"](), ModelSpec(id=str(file)), short)


def data_of(tensors: tuple[Tensor, ...]) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    return {tensor.name: (tensor.kind, tensor.shape, b"".join(tensor.pieces())) for tensor in tensors}


@pytest.mark.parametrize("architecture", [*READ_FREQS, *READ_PAIR])
def test_only_the_factors_change(architecture: str, tmp_path: Path) -> None:
    file = file_of(tmp_path, architecture, quantised=Q4_1)
    content = file.read_bytes()
    written = export("gguf", source_of(file), tmp_path / "out.gguf")
    assert written.files == [tmp_path / "out.gguf"]
    assert written.command == f"llama-cli -m {tmp_path}/out.gguf -c 256"
    before, after = read_header(file), read_header(tmp_path / "out.gguf")
    names = (
        ["rope_freqs.weight"]
        if architecture in READ_FREQS
        else ["rope_factors_long.weight", "rope_factors_short.weight"]
    )
    assert [tensor.name for tensor in after.tensors] == [*(tensor.name for tensor in before.tensors), *names]
    for name in names:
        tensor = after.tensor(name)
        assert tensor is not None
        assert tensor.kind == GGMLQuantizationType.F32
        assert tensor.floats().tolist() == np.float32(LAMBDAS).tolist()
    kept, ours = data_of(before.tensors), data_of(after.tensors)
    assert {name: ours[name] for name in kept} == kept
    assert any(kind == GGMLQuantizationType.Q4_1 for kind, _, _ in kept.values())
    prefix = f"{architecture}.rope.scaling."
    new = {f"{prefix}attn_factor": np.float32(1.17), f"{prefix}original_context_length": 64}
    new |= {f"{prefix}type": "longrope"} if architecture in READ_PAIR else {}
    new |= {f"{architecture}.context_length": 256}
    values = {key: entry.value for key, entry in after.metadata.items()}
    assert values == {key: entry.value for key, entry in before.metadata.items()} | new
    unchanged = before.metadata.keys() - new.keys()
    assert {key: after.metadata[key].raw for key in unchanged} == {key: before.metadata[key].raw for key in unchanged}
    assert file.read_bytes() == content
    theirs = {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
    assert theirs == {name: data for name, (_, _, data) in ours.items()}


def test_an_old_scaling_is_replaced(tmp_path: Path) -> None:
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.yarn_log_multiplier": 0.1}
    old = {"rope_freqs.weight": np.full(8, 3.0, "float32")}
    file = file_of(tmp_path, extra=yarn | {"rope.scale_linear": 2.0}, tensors=old, context_length=512)
    export("gguf", source_of(file), tmp_path / "once.gguf")
    once = read_header(tmp_path / "once.gguf")
    assert [tensor.name for tensor in once.tensors] == [tensor.name for tensor in read_header(file).tensors]
    scaling = {key for key in once.metadata if ".rope.scal" in key}
    assert scaling == {"llama.rope.scaling.attn_factor", "llama.rope.scaling.original_context_length"}
    assert once.get("{arch}.context_length") == 512  # it was above the target
    rope = read_rope(once)
    assert rope is not None
    assert (rope.rescale_factors(), rope.attention_factor, rope.original_length) == (tuple(LAMBDAS), 1.17, 64)
    export("gguf", source_of(tmp_path / "once.gguf"), tmp_path / "twice.gguf")
    assert (tmp_path / "twice.gguf").read_bytes() == (tmp_path / "once.gguf").read_bytes()


def test_a_pair(tmp_path: Path) -> None:
    short = found([1.0 + 0.1 * i for i in range(8)], 64)
    file = file_of(tmp_path, "phi3")
    written = export("gguf", source_of(file, short=short), tmp_path / "out.gguf")
    assert "the long factors if the context" in written.notes[0]
    rope = read_rope(read_header(tmp_path / "out.gguf"))
    assert rope is not None
    assert rope.rescale_factors(short=True) == pytest.approx(short.rescale_factors)
    assert rope.rescale_factors() == tuple(LAMBDAS)
    for changes, target, reason in (
        ({"attention_factor": 1.2}, 64, "the attention factor is 1.17 for long inputs and 1.2 for short ones"),
        ({"initial_tokens": 2}, 64, "the short factors keep 2 initial tokens"),
        ({}, 128, "llama.cpp switches at the original length of 64: readjust them at that length"),
    ):
        with pytest.raises(ExportError, match=reason):
            export("gguf", source_of(file, short=found(target=target, **changes)), tmp_path / "wrong.gguf")
    shorter = short.model_copy(update={"model": short.model.model_copy(update={"original_length": 32})})
    with pytest.raises(ExportError, match="for an original length of 32, but the long ones for 64"):
        export("gguf", source_of(file, short=shorter), tmp_path / "wrong.gguf")


def test_the_nearest(tmp_path: Path) -> None:
    engine, file = engine_named("gguf"), file_of(tmp_path)
    source = source_of(file, found(initial_tokens=4), found(target=64))
    with pytest.raises(
        ExportError, match=r"4 initial tokens, which llama.cpp cannot express; .* for llama; the nearest is"
    ):
        export("gguf", source, tmp_path / "out.gguf")
    nearest, _ = expressible(engine, source, nearest=True)
    assert (nearest.file.initial_tokens, nearest.short) == (0, None)
    assert nearest.file.rescale_factors == LAMBDAS
    export("gguf", source, tmp_path / "out.gguf", nearest=True)


def test_qwen2_as_llama_reorders_rows_of_q_and_k_only(tmp_path: Path) -> None:
    file = file_of(tmp_path, "qwen2", quantised=Q4_1)
    with pytest.raises(
        ExportError, match=r"refuses files of architecture qwen2 with factors; .*rewritten as architecture llama"
    ):
        export("gguf", source_of(file), tmp_path / "out.gguf")
    written = export("gguf", source_of(file), tmp_path / "out.gguf", nearest=True)
    assert "architecture llama" in written.notes[-1]
    before, after = GGUFReader(file), GGUFReader(tmp_path / "out.gguf")
    assert after.fields["general.architecture"].contents() == "llama"
    assert not [key for key in after.fields if key.startswith("qwen2.")]
    new = {tensor.name: tensor.data for tensor in after.tensors}
    for tensor in before.tensors:
        part = tensor.name.split(".")[-2]
        if part in ("attn_q", "attn_k"):
            heads = {"attn_q": 4, "attn_k": 2}[part]
            rows = tensor.data.reshape(heads, 2, 8, -1).swapaxes(1, 2).reshape(tensor.data.shape)
            assert not np.array_equal(rows, tensor.data)
            assert np.array_equal(new[tensor.name], rows)
        else:
            assert np.array_equal(new[tensor.name], tensor.data)
    assert sum(".attn_q.bias" in name for name in new) == 2


REFUSED = {
    **{name: rf"llama\.cpp would load {name} with factors, but ignore them" for name in IGNORE_FREQS},
    **{
        name: rf"llama\.cpp refuses files of architecture {name} with factors: it reads them for llama, .*minicpm3"
        for name in ("qwen3", "gemma", "gemma2", "gemma3", "olmo2", "stablelm", "starcoder2", "command-r", "gpt-oss")
    },
}


@pytest.mark.parametrize(("architecture", "reason"), REFUSED.items())
@pytest.mark.parametrize("name", ["gguf", "ollama"])
def test_architectures_are_refused_before_anything_is_written(
    name: str, architecture: str, reason: str, tmp_path: Path
) -> None:
    file = file_of(tmp_path, architecture)
    with pytest.raises(ExportError, match=reason):
        export(name, source_of(file), tmp_path / "out", nearest=True)
    assert list(tmp_path.iterdir()) == [file]


def test_what_else_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    file = file_of(tmp_path)
    with pytest.raises(ExportError, match=r"is not one: give it with --model FILE\.gguf"):
        export("gguf", Source(found(), ModelSpec(id=str(checkpoint))), tmp_path / "out.gguf")
    for values, reason in (
        ({"rope_theta": 5e5}, r"the factors are for rope_theta 500000 \(m\), but llama.gguf has 10000"),
        ({"rotary_dim": 32, "lambdas": [1.0] * 16}, "rotary_dim 32"),
    ):
        with pytest.raises(FactorsError, match=reason):
            export("gguf", source_of(file, found(**values)), tmp_path / "out.gguf")
    for wrong, reason in ((tmp_path / "absent.gguf", "there is no GGUF file"), (tmp_path, "is not one: give it")):
        with pytest.raises(FactorSearchError, match=reason):
            export("gguf", source_of(wrong), tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(OutputError, match="exists: choose another --out"):
        export("gguf", source_of(file), file)
    (tmp_path / "a file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        export("gguf", source_of(file), tmp_path / "a file" / "folder")


def test_a_base_that_float32_cannot_hold_belongs_all_the_same(tmp_path: Path) -> None:
    file = write_model(tmp_path / "m.gguf", tiny_model("llama", vocab_size=257, rope_theta=1e11))
    export("gguf", source_of(file, found(rope_theta=1e11)), tmp_path / "out.gguf")
    assert read_rope(read_header(tmp_path / "out.gguf")).rope_theta == 1e11  # type: ignore[union-attr]


def test_a_folder_gets_a_file_named_after_the_length(tmp_path: Path) -> None:
    file = file_of(tmp_path)
    written = export("gguf", source_of(file), tmp_path / "some folder")
    assert written.files == [tmp_path / "some folder" / "llama-256.gguf"]
    assert written.command == f"llama-cli -m '{tmp_path}/some folder/llama-256.gguf' -c 256"


def test_a_link_into_a_cache_keeps_its_name(tmp_path: Path) -> None:
    file = file_of(tmp_path).rename(tmp_path / "0a1b2c")
    (tmp_path / "model.gguf").symlink_to(file)
    (out,) = export("gguf", source_of(tmp_path / "model.gguf"), tmp_path / "out").files
    assert out.name == "model-256.gguf"
    assert not out.is_symlink()


def test_ollama(tmp_path: Path) -> None:
    file = file_of(tmp_path).rename(tmp_path / "My Model.Q4_1.gguf")
    out = tmp_path / "out"
    written = export("ollama", source_of(file), out)
    assert written.files == [out / "Modelfile", out / "My Model.Q4_1-256.gguf"]
    assert (out / "Modelfile").read_text() == "FROM ./My Model.Q4_1-256.gguf\nPARAMETER num_ctx 256\n"
    assert written.command == f"ollama create my-model.q4_1-256 -f {out}/Modelfile"
    assert "Attention factor read, not run" in written.notes[0]
    export("gguf", source_of(file), tmp_path / "alone.gguf")
    assert (out / "My Model.Q4_1-256.gguf").read_bytes() == (tmp_path / "alone.gguf").read_bytes()
    for wrong, reason in ((out, "is not empty"), (tmp_path / "x.gguf", "needs a folder")):
        with pytest.raises(OutputError, match=reason):
            export("ollama", source_of(file), wrong)


def test_both_are_engines() -> None:
    assert (ENGINES["gguf"].title, ENGINES["ollama"].title) == ("llama.cpp", "ollama")
    assert {ENGINES[name].document_name for name in ("gguf", "ollama")} == {None}
