"""Checkpoints as people have them: adapters, code of their own, older spellings, multi-modal models, scaled lengths."""

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from api.cli import main
from factor_search.errors import ModelLoadError, UnsupportedModelError
from factor_search.export.huggingface import huggingface_config
from factor_search.factors import Factors
from factor_search.factors_file import FactorsModel, factors_file
from factor_search.files.json_documents import write_json
from factor_search.job import check_possible, run_job
from factor_search.methods import closed_forms
from factor_search.model.auto_class import auto_class
from factor_search.model.configuration import read_geometry
from factor_search.model.geometry import Geometry
from factor_search.model.injection import Injector, probe
from factor_search.model.loading import load_config, load_model
from factor_search.model.losses import token_losses
from factor_search.plan.check import check_plan
from factor_search.plan.spec import parse_plan
from factor_search.search.space import SearchSpace
from factor_search.spec import ModelSpec, parse_spec
from factor_search.testbed.byte_tokenizer import byte_tokenizer
from tests.conftest import save_checkpoint
from tests.families import SMALL, tiny_model
from tests.test_live_frequencies import with_own_code

PARTS = {"search_documents": 1, "validation_documents": 1, "held_out_documents": 1}


def job(model: Any, texts: Path, **changes: Any) -> dict[str, Any]:
    data = {"files": [f"{texts}/*.txt"], **PARTS}
    return {"model": model, "data": data, "target_length": 128, "space": {"initial_tokens": [0]}, "budget": 9} | changes


def llama(**settings: Any) -> Geometry:
    return read_geometry(AutoConfig.for_model("llama", **(SMALL | settings)))


def linear(length: int, factor: float, **settings: Any) -> Geometry:
    return llama(max_position_embeddings=length, rope_scaling={"type": "linear", "factor": factor}, **settings)


class TestLinearScaling:
    @pytest.mark.parametrize(
        ("length", "factor", "settings", "original", "configured"),
        [
            (16_384, 4.0, {}, 4096, 16_384),  # chinese-alpaca-2-13b-16k, deepseek-coder
            (32_768, 8.0, {}, 4096, 32_768),  # LLaMA-2-7B-32K
            (131_072, 8.0, {}, 16_384, 131_072),  # Gemma 3
            (8192, 4.0, {}, 2048, 8192),  # SuperHOT
            (4096, 4.0, {"max_sequence_length": 16_384}, 4096, 16_384),  # vicuna-13b-v1.5-16k
            (2048, 4.0, {}, 2048, 8192),  # nobody trained for 512 tokens
            (16_384, 3.0, {}, 16_384, 49_152),  # not a whole number
            (256, 4.0, {}, 64, 256),
            (16, 4.0, {}, 16, 64),
            (4096, 1.0, {}, 4096, 4096),
        ],
    )
    def test_original_length(
        self, length: int, factor: float, settings: dict[str, Any], original: int, configured: int
    ) -> None:
        geometry = linear(length, factor, **settings)
        assert (geometry.original_length, geometry.configured_length) == (original, configured)
        (note,) = geometry.notes
        assert f"{length}" in note
        assert "--original-length" in note

    def test_the_user_and_the_file_know_better(self) -> None:
        config = AutoConfig.for_model(
            "llama", **(SMALL | {"max_position_embeddings": 256}), rope_scaling={"type": "linear", "factor": 4.0}
        )
        given = read_geometry(config, original_length=128)
        assert (given.original_length, given.notes) == (128, ())
        config.original_max_position_embeddings = 32
        stated = read_geometry(config)
        assert (stated.original_length, stated.configured_length, stated.notes) == (32, 256, ())

    def test_no_closed_form_is_weaker_than_the_model(self) -> None:
        forms = closed_forms(linear(256, 4.0), 512)
        configured = forms.pop("as-configured").rescale_factors
        assert configured == (4.0,) * 8
        assert forms["pi"].rescale_factors == (8.0,) * 8

    @pytest.mark.parametrize("strategy", ["auto", "evolution", "cma", "random"])
    @pytest.mark.parametrize(("target", "original"), [(128, None), (512, None), (512, 256)])
    def test_the_space_contains_the_model(self, strategy: str, target: int, original: int | None) -> None:
        config = AutoConfig.for_model(
            "llama", **(SMALL | {"max_position_embeddings": 256}), rope_scaling={"type": "linear", "factor": 4.0}
        )
        geometry = read_geometry(config, original)
        spec = parse_spec({"model": "m", "data": "d", "target_length": target, "strategy": strategy})
        space = SearchSpace.of(spec, geometry)
        configured = geometry.configured_factors(target)
        assert configured is not None
        assert space.factors(space.project(configured)).rescale_factors == configured.rescale_factors

    def test_what_was_assumed_is_printed_before_a_search(self, tmp_path: Path, texts: Path, capsys: Any) -> None:
        model = tiny_model("llama", vocab_size=257, rope_scaling={"type": "linear", "factor": 4.0})
        document = tmp_path / "job.json"
        write_json(document, job(str(save_checkpoint(model, tmp_path / "model")), texts))
        assert main(["run", str(document), "--out", str(tmp_path / "out")]) == 0
        assert "is taken to include the linear factor 4" in capsys.readouterr().err
        assert json.loads((tmp_path / "out" / "factors.json").read_text())["model"]["original_length"] == 16

    def test_a_bound_that_the_user_sets_stays(self) -> None:
        document = {"model": "m", "data": "d", "target_length": 128, "space": {"upper_bound": 1.25}}
        space = SearchSpace.of(parse_spec(document), linear(256, 4.0))
        assert 1 + space.step * space.top_level == pytest.approx(2.5)

    def test_plain_models_have_the_bounds_of_earlier_versions(self) -> None:
        for strategy, bound in (("evolution", 1.25), ("auto", 8.0)):
            spec = parse_spec({"model": "m", "data": "d", "target_length": 128, "strategy": strategy})
            assert SearchSpace.of(spec, llama()).top_level == round((2 * bound - 1) / 0.01)


class TestOlderSpellings:
    LISTS: ClassVar = {"short_factor": [1.0] * 8, "long_factor": [1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]}

    def phi3(self, folder: Path, name: str) -> Path:
        rope = {"type": "longrope", **self.LISTS}
        lengths = {"original_max_position_embeddings": 64, "max_position_embeddings": 512}
        model = tiny_model("phi3", vocab_size=257, num_key_value_heads=4, rope_scaling=rope, **lengths)
        save_checkpoint(model, folder)
        content = json.loads((folder / "config.json").read_text())
        del content["rope_parameters"]
        content |= {"rope_scaling": {"type": name, **self.LISTS}, "rope_theta": 10_000.0, **lengths}
        write_json(folder / "config.json", content)
        return folder

    def test_su_is_longrope(self, tmp_path: Path, texts: Path) -> None:
        folders = [self.phi3(tmp_path / name, name) for name in ("longrope", "su")]
        new, old = [load_model(ModelSpec(id=str(folder))) for folder in folders]
        assert old.geometry == new.geometry
        assert (old.geometry.base_rope_type, old.geometry.original_length) == ("longrope", 64)
        ids = torch.arange(100)[None]
        assert torch.equal(token_losses(old.model, ids), token_losses(new.model, ids))
        check_possible(parse_spec(job(str(folders[1]), texts)))

    @pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
    def test_su_in_the_language_model_of_a_multi_modal_one(self, key: str, tmp_path: Path) -> None:
        rope = {"type": "su", **self.LISTS, "original_max_position_embeddings": 64}
        text = SMALL | {"model_type": "llama", key: rope, "max_position_embeddings": 512, "rope_theta": 10_000.0}
        write_json(tmp_path / "config.json", multimodal("llava") | {"text_config": text})
        geometry = read_geometry(load_config(ModelSpec(id=str(tmp_path))))
        assert (geometry.base_rope_type, geometry.original_length) == ("longrope", 64)


class TestAdapters:
    @pytest.fixture
    def adapters(self, checkpoint: Path, tmp_path: Path) -> Path:
        """What a training of adapters writes, but for their weights."""
        from peft import LoraConfig

        settings = LoraConfig(r=2, target_modules=["q_proj"], base_model_name_or_path=str(checkpoint))
        settings.save_pretrained(str(tmp_path / "adapters"))
        return tmp_path / "adapters"

    def test_their_base_and_what_to_do(self, adapters: Path, checkpoint: Path, texts: Path, capsys: Any) -> None:
        words = f"holds adapters of {checkpoint}, not a model: merge them"
        for refused in (load_config, load_model):
            with pytest.raises(ModelLoadError, match=words):
                refused(ModelSpec(id=str(adapters)))
        with pytest.raises(ModelLoadError, match=words):
            check_possible(parse_spec(job(str(adapters), texts)))
        plan = {"model": str(adapters), "data": [f"{texts}/*.txt"], "target_length": 128, "recipe": "longrope"}
        with pytest.raises(ModelLoadError, match=words):
            check_plan(parse_plan(plan))
        assert main(["inspect", "--model", str(adapters)]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1

    def test_adapters_beside_a_whole_model(self, adapters: Path, checkpoint: Path) -> None:
        """Transformers would load the base model and the adapters, and ignore the weights in the folder."""
        for file in checkpoint.iterdir():
            shutil.copyfile(file, adapters / file.name)
        with pytest.raises(ModelLoadError, match=r"a merged model has no adapter_config\.json"):
            load_config(ModelSpec(id=str(adapters)))

    @pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"base_model_name_or_path": null}'])
    def test_a_broken_description(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text(content)
        with pytest.raises(ModelLoadError, match="holds adapters of an unnamed model"):
            load_config(ModelSpec(id=str(tmp_path)))


class TestCodeOfItsOwn:
    def test_every_command_that_takes_a_model(self, tmp_path: Path, texts: Path, capsys: Any) -> None:
        folder, out = with_own_code(tmp_path / "model"), tmp_path / "extended"
        (folder / "modeling_own.py").write_text(
            "from transformers import LlamaForCausalLM\n\nfrom .configuration_own import OwnConfig\n\n\n"
            "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
        )
        model = ["--model", str(folder)]
        methods = ["methods", *model, "--target-length", "128", "--method", "yarn", "--json"]
        factors = tmp_path / "yarn.json"
        calls = [
            methods,
            ["inspect", *model],
            ["evaluate", *model, "--data", f"{texts}/00.txt", "--length", "128", "--factors", str(factors), "--json"],
            ["export", "--factors", str(factors), "--format", "huggingface", "--out", str(out)],
            ["evaluate", "--model", str(out), "--data", f"{texts}/00.txt", "--length", "128", "--json"],
        ]
        printed = []
        for call in calls:
            assert main([*call, "--trust-remote-code"]) == 0, capsys.readouterr().err
            printed.append(capsys.readouterr().out)
            if call is methods:
                factors.write_text(printed[0])
        assert json.loads(printed[2])["perplexity"] == pytest.approx(json.loads(printed[4])["perplexity"], rel=1e-6)
        assert {"modeling_own.py", "configuration_own.py"} <= {file.name for file in out.iterdir()}
        assert json.loads((out / "config.json").read_text())["auto_map"]["AutoConfig"] == "configuration_own.OwnConfig"
        for call in calls:
            assert main(call) == 1
            error = capsys.readouterr().err.splitlines()[-1]
            assert "needs Python code that comes with it" in error
            assert "--trust-remote-code" in error

    @pytest.mark.parametrize("command", ["run", "submit"])
    def test_flags_of_a_specification(self, command: str, capsys: Any) -> None:
        flags = ["--model", "m", "--data", "d", "--target-length", "128", "--trust-remote-code", "--print-spec"]
        assert main([command, *flags]) == 0
        assert json.loads(capsys.readouterr().out)["model"] == {"id": "m", "trust_remote_code": True}


TEXT = SMALL | {"vocab_size": 300, "head_dim": 16}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
QWEN = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 64, "num_heads": 2}


def multimodal(model_type: str) -> dict[str, Any]:
    """The content of a config.json as published."""
    return {"model_type": model_type} | {
        "llava": {
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": VISION | {"model_type": "clip_vision_model"},
            "image_token_index": 299,
        },
        "mistral3": {
            "architectures": ["Mistral3ForConditionalGeneration"],
            "text_config": TEXT
            | {
                "model_type": "mistral",
                "sliding_window": None,
                "max_position_embeddings": 256,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e6,
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
            },
            "vision_config": VISION | {"model_type": "pixtral", "head_dim": 16},
            "image_token_index": 299,
        },
        "qwen2_5_vl": {
            "text_config": TEXT | {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
            "vision_config": QWEN,
            "image_token_id": 299,
            "video_token_id": 298,
            "vision_start_token_id": 297,
            "vision_end_token_id": 296,
        },
        "voxtral": {
            "text_config": TEXT | {"model_type": "llama"},
            "audio_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_source_positions": 16,
            },
            "audio_token_id": 299,
        },
    }.get(model_type, {})


def saved(model_type: str, folder: Path) -> Path:
    """A checkpoint of a multi-modal model with random weights."""
    folder.mkdir()
    content = multimodal(model_type)
    write_json(folder / "config.json", content)
    config = AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    model = auto_class(config).from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    byte_tokenizer(64).save_pretrained(folder)
    write_json(folder / "config.json", content)
    return folder


@torch.inference_mode()
def logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits


class TestMultiModal:
    @pytest.mark.parametrize("model_type", ["llava", "mistral3", "qwen2_5_vl", "voxtral"])
    def test_measured_and_exported_as_text(self, model_type: str, tmp_path: Path) -> None:
        folder = saved(model_type, tmp_path / "model")
        loaded = load_model(ModelSpec(id=str(folder)))
        assert type(loaded.model).__name__.endswith("ForConditionalGeneration")
        geometry = loaded.geometry
        geometry.check_searchable()
        probe(loaded.model, geometry)
        ids = torch.arange(96)[None] * 7 % 250 + 2
        before = logits(loaded.model, ids)
        expected = torch.nn.functional.cross_entropy(before[0, :-1], ids[0, 1:], reduction="none")
        losses = token_losses(loaded.model, ids, chunk_tokens=16)[0]
        torch.testing.assert_close(losses, expected, rtol=0, atol=1e-5)
        configured = geometry.configured_factors(96) or Factors.of([1.0] * geometry.pairs)
        candidate = Factors.of([1.0 + i for i in range(geometry.pairs)], 0, 1.1)
        with Injector(loaded.model, geometry) as injector:
            with injector.using([configured]):
                torch.testing.assert_close(logits(loaded.model, ids), before, rtol=0, atol=1e-4)
            with injector.using([candidate]):
                injected = logits(loaded.model, ids)
        file = factors_file(candidate, FactorsModel.of(str(folder), None, geometry), 256)
        write_json(folder / "config.json", huggingface_config(file, load_config(ModelSpec(id=str(folder)))))
        exported = load_model(ModelSpec(id=str(folder)))
        torch.testing.assert_close(logits(exported.model, ids), injected, rtol=0, atol=1e-5)

    def test_searched(self, tmp_path: Path, texts: Path, capsys: Any) -> None:
        folder = saved("mistral3", tmp_path / "model")
        result = run_job(parse_spec(job(str(folder), texts)), tmp_path / "out")
        assert len(result.state.candidates) == 9
        assert main(["inspect", "--model", str(folder), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["searchable"]["rescale_factors"] == 8

    def test_a_model_that_does_not_predict_text(self, tmp_path: Path, texts: Path, capsys: Any) -> None:
        """ModernBERT has RoPE, and is an encoder."""
        config = AutoConfig.for_model("modernbert", **SMALL)
        config.save_pretrained(tmp_path)
        words = "neither as a causal language model nor as a multi-modal one"
        with pytest.raises(UnsupportedModelError, match=words):
            check_possible(parse_spec(job(str(tmp_path), texts)))
        with pytest.raises(UnsupportedModelError, match=words):
            load_model(ModelSpec(id=str(tmp_path)))
        assert main(["inspect", "--model", str(tmp_path), "--json"]) == 0
        described = json.loads(capsys.readouterr().out)
        assert described["searchable"] is False
        assert words in described["not_searchable_because"]
        assert main(["inspect", "--model", str(tmp_path)]) == 0
        assert words in capsys.readouterr().out

    def test_a_model_that_needs_its_other_inputs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from transformers import LlavaForConditionalGeneration

        def forward(self: Any, **keywords: Any) -> Any:
            raise ValueError("You must give pixel_values")

        folder = saved("llava", tmp_path / "model")
        monkeypatch.setattr(LlavaForConditionalGeneration, "forward", forward)
        with pytest.raises(UnsupportedModelError, match=r"text alone .* \(You must give pixel_values\)"):
            load_model(ModelSpec(id=str(folder)))


def test_inspect_says_that_no_layer_sees_more(tmp_path: Path, capsys: Any) -> None:
    folder = save_checkpoint(tiny_model("mistral", vocab_size=257, sliding_window=32), tmp_path / "model")
    assert main(["inspect", "--model", str(folder), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert (described["reach"], described["searchable"], described["export_formats"]) == (32, False, [])
    assert main(["inspect", "--model", str(folder)]) == 0
    assert "searchable            no: every layer of MistralForCausalLM with RoPE sees at most 32 tokens" in (
        capsys.readouterr().out
    )
    assert main(["inspect", "--model", str(folder), "--original-length", "16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["searchable"]["target_length"] == "above 16"


def test_notes_are_printed(tmp_path: Path, capsys: Any) -> None:
    rope = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}
    config = AutoConfig.for_model("hunyuan_v1_dense", **SMALL, head_dim=16, rope_theta=10_000.0, rope_scaling=rope)
    config.save_pretrained(tmp_path)
    assert main(["inspect", "--model", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert (
        "notes                 alpha 1000 of the configuration is a fixed larger base, which counts as rope_theta"
        in out
    )
    assert "rope theta            26826957.9" in out
