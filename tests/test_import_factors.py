"""Factors from configurations, published tables, lists of numbers and model folders."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import factor_search as fs
from api.cli import main
from factor_search.errors import FactorSearchError, FactorsError, ModelError
from factor_search.factors_file import FactorsFile
from factor_search.model.as_configured import as_configured
from factor_search.model.configuration import read_geometry
from factor_search.model.geometry import longrope_attention_factor
from factor_search.search.warm_start import read_known, starting_points
from factor_search.spec import WarmStartSpec
from tests.conftest import save_checkpoint
from tests.families import SMALL, tiny_model

PUBLISHED = Path(
    os.environ.get("FACTOR_SEARCH_PUBLISHED") or Path(__file__).parents[2] / "shared" / "data" / "published"
)
LONG, SHORT = [1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.03, 6.71], [1.0, 1.0, 1.01, 1.02, 1.1, 1.2, 1.3, 1.4]
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "short_factor": SHORT,
        "long_factor": LONG,
    },
}
TARGETS = {"linear": 256, "llama3": 512, "yarn": 256, "longrope": 256}


def scaled(rope_type: str) -> PreTrainedModel:
    longest = TARGETS[rope_type]
    return tiny_model("llama", vocab_size=257, rope_scaling=SCALINGS[rope_type], max_position_embeddings=longest)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saves a tiny Llama with a scaling, once."""
    root = tmp_path_factory.mktemp("scaled")

    def saved(rope_type: str) -> Path:
        place = root / rope_type
        return place if place.exists() else save_checkpoint(scaled(rope_type), place)

    return saved


def written(place: Path, content: Any) -> Path:
    place.write_text(json.dumps(content))
    return place


def numbers(file: FactorsFile) -> tuple[Any, ...]:
    """What factors are, whatever format they come from."""
    return file.factors, file.target_length, file.model.original_length, file.model.rope_theta, file.model.rotary_dim


@pytest.mark.parametrize("rope_type", SCALINGS)
def test_factors_as_configured_compute_what_the_plain_model_computes(
    rope_type: str, folder: Callable[[str], Path]
) -> None:
    """On the scaled model and on one without scaling; bit for bit, unless no float32 factor gives a frequency."""
    model = AutoModelForCausalLM.from_pretrained(folder(rope_type)).eval()
    file = fs.import_factors(folder(rope_type))
    assert (file.model.base_rope_type, file.scale) == (rope_type, SCALINGS[rope_type]["factor"])
    tokens = torch.randint(3, 250, (1, 200), generator=torch.Generator().manual_seed(1))
    close = {"rtol": 0, "atol": 0 if rope_type in ("linear", "longrope") else 5e-5}
    unscaled = tiny_model("llama", vocab_size=257)
    with torch.no_grad():
        expected, other = model(tokens).logits, unscaled(tokens).logits
        with fs.apply(model, file):
            torch.testing.assert_close(model(tokens).logits, expected, **close)
        with fs.apply(unscaled, file):
            torch.testing.assert_close(unscaled(tokens).logits, expected, **close)
    assert (other - expected).abs().max() > 0.01


@pytest.mark.parametrize(
    ("model_type", "settings", "exact"),
    [
        ("llama", {"rope_theta": 5e5, "rope_scaling": SCALINGS["llama3"]}, 63),
        ("qwen2", {"rope_theta": 1e6, "rope_scaling": SCALINGS["yarn"]}, 62),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}, 52),
    ],
)
def test_frequencies_of_wide_heads(model_type: str, settings: dict[str, Any], exact: int) -> None:
    """Where float32 has no factor for a frequency, the nearest is one unit in the last place away."""
    geometry = read_geometry(AutoConfig.for_model(model_type, **(SMALL | {"head_dim": 128} | settings)))
    live = tiny_model(model_type, head_dim=128, **settings).model.rotary_emb.inv_freq
    ours = geometry.inverse_frequencies(as_configured(geometry, 512).rescale_factors)
    assert (ours == live).sum() >= exact - 2
    torch.testing.assert_close(ours, live, rtol=1.3e-7, atol=0)


def test_the_lists_of_longrope(folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Digit for digit: the long one, and the short one for a length up to the original length."""
    source = folder("longrope")
    long, short = fs.import_factors(source), fs.import_factors(source, target_length=64)
    assert (long.rescale_factors, short.rescale_factors) == (LONG, SHORT)
    assert long.attention_factor == short.attention_factor == longrope_attention_factor(4, 64)
    files = fs.export_factors(long, tmp_path / "pair.json", short=short).files
    pair = json.loads(files[0].read_text())["rope_parameters"]
    assert (pair["long_factor"], pair["short_factor"]) == (LONG, SHORT)


@pytest.mark.parametrize("rope_type", SCALINGS)
def test_there_and_back(rope_type: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Configuration, factors, configuration, factors: the same numbers, from a folder, a file or its content."""
    first = fs.import_factors(folder(rope_type))
    fs.export_factors(first, tmp_path / "exported")
    fs.export_factors(first, tmp_path / "only.json")
    content = json.loads((tmp_path / "only.json").read_text())
    sources: list[Any] = [
        tmp_path / "exported",
        str(tmp_path / "exported"),
        tmp_path / "exported" / "config.json",
        tmp_path / "only.json",
        content,
    ]
    for source in sources:
        assert numbers(fs.import_factors(source)) == numbers(first)
    fs.save_factors(first, tmp_path / "factors.json")
    assert numbers(fs.import_factors(tmp_path / "factors.json")) == numbers(first)


def test_a_part_of_a_configuration(checkpoint: Path, folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Lists alone belong to the model that is named with them."""
    whole = fs.import_factors(folder("longrope"))
    part = written(tmp_path / "scaling.json", {"rope_scaling": SCALINGS["longrope"]})
    assert numbers(fs.import_factors(part, model=str(checkpoint))) == numbers(whole)
    short = fs.import_factors(part, model=str(checkpoint), target_length=64)
    assert short.rescale_factors == SHORT
    unknown = written(tmp_path / "new.json", {"model_type": "not-known-here", "rope_scaling": SCALINGS["longrope"]})
    assert numbers(fs.import_factors(unknown, model=str(checkpoint))) == numbers(whole)
    with pytest.raises(ModelError, match=r"new\.json"):
        fs.import_factors(unknown)


def test_dynamic_rope_needs_a_length() -> None:
    config = {"model_type": "llama", **SMALL, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}
    with pytest.raises(FactorsError, match="--target-length"):
        fs.import_factors(config)
    factors = fs.import_factors(config, target_length=256).rescale_factors
    assert factors[0] == 1
    assert factors[-1] == pytest.approx(4 * 256 / 64 - 3)  # base' / base = (s n / L - (s - 1))^(d / (d - 2))


def test_layer_types_and_multi_modal_models() -> None:
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    text = tiny_model("gemma3_text").config.to_dict() | {"rope_parameters": rope}
    for config in (text, {"model_type": "gemma3", "text_config": text}):
        file = fs.import_factors(config)
        assert (file.rescale_factors, file.model.rope_theta) == ([8.0] * 8, 1e6)


LISTS: dict[str, Callable[[Path], Path]] = {
    "list.json": lambda file: written(file, LONG),
    "rows.json": lambda file: written(file, [LONG, LONG, LONG]),
    "one a line.csv": lambda file: save(file, "\n".join(map(str, LONG)) + "\n"),
    "in a line.csv": lambda file: save(file, ", ".join(map(str, LONG))),
    "rows.csv": lambda file: save(file, "\n".join([",".join(map(str, LONG))] * 3)),
    "spaces.csv": lambda file: save(file, " ".join(map(str, LONG)) + " \n"),
    "column.json": lambda file: written(file, [[number] for number in LONG]),
    "column.npy": lambda file: save_array(file, np.array(LONG)[:, None]),
    "list.txt": lambda file: save(file, "\r\n".join(map(str, LONG))),
    "list.npy": lambda file: save_array(file, np.array(LONG)),
    "rows.npy": lambda file: save_array(file, np.array([LONG, LONG])),
}


def save(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def save_array(file: Path, array: Any) -> Path:
    np.save(file, array, allow_pickle=True)
    return file


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_numbers(name: str, checkpoint: Path, tmp_path: Path) -> None:
    """As LongRoPE's repository has them: one vector, or the same one for each layer."""
    file = fs.import_factors(LISTS[name](tmp_path / name), model=str(checkpoint), target_length=256)
    assert file.rescale_factors == LONG
    assert file.attention_factor == longrope_attention_factor(4, 64)
    assert (file.model.id, file.target_length) == (str(checkpoint), 256)
    for numbers_in_memory in (LONG, np.array(LONG), torch.tensor(LONG, dtype=torch.float64)):
        assert file == fs.import_factors(numbers_in_memory, model=str(checkpoint), target_length=256)


def table(**changes: Any) -> dict[str, Any]:
    model = {"name": "Tiny", "rope_theta": 10000, "head_dim": 16, "rotary_dim": 16, "original_length": 64}
    document = {"name": "tiny_256", "model": model, "target_length": 256, "scale": 4, "rescale_factors": LONG}
    return document | changes


def test_a_published_table(checkpoint: Path, tmp_path: Path) -> None:
    """It says to which model it belongs; the attention factor is LongRoPE's, unless it says another."""
    file = fs.import_factors(written(tmp_path / "tiny.json", table()))
    assert (file.model.id, file.model.rotary_dim, file.model.original_length, file.scale) == ("Tiny", 16, 64, 4)
    assert file.attention_factor == longrope_attention_factor(4, 64)
    assert fs.import_factors(table(attention_factor=1.5)).attention_factor == 1.5
    unordered = [0.998, 3.0, 2.0, 4.0, 4.0, 9.0, 8.0, 7.0]
    ours = fs.import_factors(table(rescale_factors=unordered), model=str(checkpoint))
    assert ours.rescale_factors == unordered
    assert (ours.model.id, ours.model.architecture) == (str(checkpoint), "LlamaForCausalLM")
    longer = fs.import_factors(table(), model=str(checkpoint), target_length=512)
    assert (longer.target_length, longer.scale) == (512, 8)
    assert longer.attention_factor == file.attention_factor, "which belongs to the factors, not to their use"


@pytest.mark.parametrize("file", sorted(PUBLISHED.glob("*.json")) or [None], ids=lambda file: file and file.stem)
def test_published_vectors(file: Path | None, tmp_path: Path) -> None:
    """Every number as printed; the formula gives the attention factor; a configuration carries them unchanged."""
    if file is None:
        pytest.skip("the folder of published vectors is not here")
    document = json.loads(file.read_text())
    read = fs.import_factors(file)
    assert read.rescale_factors == document["rescale_factors"]
    theirs = document["model"]
    assert (read.model.rope_theta, read.model.rotary_dim) == (theirs["rope_theta"], theirs["rotary_dim"])
    assert (read.target_length, read.scale) == (document["target_length"], document["scale"])
    assert read.attention_factor == document["attention_factor"]
    formula = document.pop("attention_factor")
    assert fs.import_factors(document).attention_factor == pytest.approx(formula, rel=1e-12)
    original = theirs["original_length"]
    config = {"model_type": "llama", "head_dim": read.model.rotary_dim, "max_position_embeddings": original}
    written(tmp_path / "config.json", config | {"rope_theta": read.model.rope_theta})
    ours = fs.import_factors(file, model=str(tmp_path))
    exported = fs.export_factors(ours, tmp_path / "exported.json").files
    again = fs.import_factors(exported[0], target_length=max(read.target_length, original + 1))
    assert again.factors == read.factors
    fs.save_factors(ours, tmp_path / "factors.json")
    geometry = read_geometry(AutoConfig.from_pretrained(tmp_path))
    known = WarmStartSpec(factors=[read_known(str(tmp_path / "factors.json"))])
    assert starting_points(known, geometry, read.target_length) == [read.factors]


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no scaling": ({"model_type": "llama", **SMALL}, {}, "RoPE type 'default', without scaling factors"),
    "no RoPE": ({"model_type": "gpt2"}, {}, "no RoPE parameters"),
    "incomplete": ({"model_type": "llama", **SMALL, "rope_scaling": {"rope_type": "longrope"}}, {}, "long_factor"),
    "too few numbers": (LONG[:5], {"target_length": 256}, "5 rescale factors, but LlamaForCausalLM has 8"),
    "wrong base": (
        table(model={"rope_theta": 5e5, "rotary_dim": 16, "original_length": 64}),
        {},
        "rope_theta 500000, but LlamaForCausalLM has 10000",
    ),
    "NaN": ([*LONG[:7], float("nan")], {"target_length": 256}, "not a number above 0"),
    "infinite": ([*LONG[:7], float("inf")], {"target_length": 256}, "not a number above 0"),
    "not above 0": ([*LONG[:7], 0.0], {"target_length": 256}, r"rescale_factors\[7\] is 0.0"),
    "far below 1": ([*LONG[:7], 0.5], {"target_length": 256}, "below 1"),
    "too large": ([*LONG[:7], 10**400], {"target_length": 256}, "not a number"),
    "text": ([*LONG[:7], "8"], {"target_length": 256}, "factor 7 is '8', not a number"),
    "truth": ([*LONG[:7], True], {"target_length": 256}, "factor 7 is True"),
    "layers that differ": ([LONG, SHORT], {"target_length": 256}, "different factors for each layer"),
    "no length": (LONG, {}, "give --target-length"),
    "empty": ([], {"target_length": 256}, "holds no factors: they are read from a model folder"),
    "another document": ({"weights": [1]}, {}, "neither rescale_factors nor long_factor: factors are read from"),
    "a number": (7, {}, "holds no factors"),
    "broken table": (table(target_length="long"), {}, "target_length is 'long'"),
    "half a token": (table(target_length=256.5), {}, "target_length is 256.5"),
    "broken model": (table(model={"original_length": 0}), {}, "original_length is 0"),
    "broken attention factor": (table(attention_factor=-1), {}, "attention_factor is -1"),
    "initial tokens": (table(initial_tokens=-1), {}, "initial_tokens"),
    "broken factors file": ({"schema": "factor-search/factors@1"}, {}, "model: Field required"),
    "lists in the wrong place": ({"rope_scaling": {"long_factor": 3}}, {"target_length": 256}, "holds no factors"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read(name: str, checkpoint: Path, tmp_path: Path) -> None:
    """One line that says why, and which file it is about."""
    content, options, message = WRONG[name]
    with pytest.raises(FactorSearchError, match=message):
        fs.import_factors(content, model=str(checkpoint), **options)
    with pytest.raises(FactorSearchError, match=message) as caught:
        fs.import_factors(written(tmp_path / "given.json", content), model=str(checkpoint), **options)
    assert "\n" not in str(caught.value)
    assert "given.json" in str(caught.value) or isinstance(caught.value, ModelError)


NUMBER = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (), }".ljust(127) + b"\n" + bytes(8)
"""A .npy file of one number."""
FILES: dict[str, tuple[bytes, str]] = {
    "empty.json": (b"", "not JSON"),
    "text.json": (b'"path/or/hub-id"', "holds no factors"),
    "bytes.json": (b"\xff\xfe", "not UTF-8"),
    "words.csv": (b"1.0,two,3.0", "something other than numbers"),
    "bytes.csv": (b"\xff\xfe\x00", "not UTF-8 text"),
    "empty.csv": (b"\n \n", "holds no factors"),
    "zeros.txt": (b"0\n" * 8, "is 0.0"),
    "broken.npy": (b"\x93NUMPY\x01", "not a .npy file"),
    "words.npy": (b"hello", "not a .npy file"),
    "zip.npy": (b"PK\x03\x04", "not a .npy file"),
    "one.npy": (NUMBER, "holds no factors"),
    "report.json": (b'{"schema": "factor-search/report@1", "rescale_factors": [1]}', "unknown schema"),
    "large.json": (b" " * (2**24 + 1), "more than 16 MiB"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_broken(name: str, checkpoint: Path, tmp_path: Path) -> None:
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FactorsError, match=message) as caught:
        fs.import_factors(tmp_path / name, model=str(checkpoint), target_length=256)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arrays_of_objects_are_not_unpickled(checkpoint: Path, tmp_path: Path) -> None:
    file = save_array(tmp_path / "objects.npy", np.array([1.0, "a", None], dtype=object))
    with pytest.raises(FactorsError, match="file of numbers"):
        fs.import_factors(file, model=str(checkpoint), target_length=256)


def test_what_is_missing_is_named(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(FactorsError, match="there is no file absent"):
        fs.import_factors("absent.json")
    with pytest.raises(FactorsError, match="there is no file"):
        fs.import_factors(tmp_path / "absent")
    with pytest.raises(FactorsError, match="cannot read"):
        fs.import_factors("x" * 5000)
    with pytest.raises(ModelError, match="cannot load the configuration of absent/model"):
        fs.import_factors("absent/model")
    with pytest.raises(FactorsError, match="give --model"):
        fs.import_factors(LONG, target_length=256)
    with pytest.raises(ModelError, match="no model folder"):
        fs.import_factors(LONG, model="./absent", target_length=256)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty"):
        fs.import_factors(tmp_path / "empty")
    assert fs.import_factors(LONG, model={"id": str(checkpoint), "original_length": 32}, target_length=256).scale == 8


def test_the_command(
    folder: Callable[[str], Path], texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it writes is measured as the model itself, exported, and a start of a search."""
    source, out = str(folder("llama3")), str(tmp_path / "factors.json")
    assert main(["import", source, "--out", out]) == 0
    assert "8 rescale factors from 1 to 8, attention factor 1, for" in capsys.readouterr().out
    assert main(["import", source, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(Path(out).read_text())
    perplexities = []
    for which in ([], ["--factors", out]):
        data = ["--data", str(texts / "*.txt"), "--length", "256", "--documents", "2", "--device", "cpu"]
        assert main(["evaluate", "--model", source, *data, *which, "--json"]) == 0
        perplexities.append(json.loads(capsys.readouterr().out)["perplexity"])
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-6)
    assert main(["export", "--factors", out, "--format", "huggingface", "--out", str(tmp_path / "config.json")]) == 0
    start = json.dumps({"files": [out]})
    run = ["run", "--model", source, "--data", str(texts / "*.txt"), "--target-length", "512", "--candidates", "10"]
    options = ["--set", f"warm_start={start}", "--set", "space.initial_tokens=[0]", "--print-spec"]
    assert main([*run, *options]) == 0


def test_the_command_with_another_model(
    folder: Callable[[str], Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "factors.json")
    given = ["import", str(folder("longrope")), "--model", str(checkpoint), "--target-length", "128", "--out", out]
    assert main(given) == 0
    read = fs.load_factors(out)
    assert (read.model.id, read.target_length, read.rescale_factors) == (str(checkpoint), 128, LONG)
    capsys.readouterr()
    wrong = {
        ("import", "absent.json", "--out", out): "there is no file absent.json",
        ("import", str(checkpoint)): "give --out F.json",
        ("import", str(checkpoint), "--out", out): "without scaling factors",
        ("import", str(checkpoint), "--target-length", "0", "--out", out): "it is a number of tokens",
        ("import", str(folder("longrope")), "--out", str(tmp_path / "absent" / "f.json")): "cannot write",
    }
    for arguments, message in wrong.items():
        assert main(list(arguments)) == 1
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1
