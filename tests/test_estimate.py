"""What a job costs is known before it starts: operations, memory, speed, and what follows from them."""

import json
import math
import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, PretrainedConfig

from api.cli import main
from factor_search.errors import FactorSearchError, UnsupportedModelError
from factor_search.files.cache import cache_folder
from factor_search.job import estimate_job, run_job
from factor_search.model import memory as memory_module
from factor_search.model import size as size_module
from factor_search.model.memory import (
    PeakMemory,
    available_bytes,
    evaluation_memory,
    largest_length,
    resident_bytes,
    training_memory,
)
from factor_search.model.size import AttentionLayers, ModelSize, model_size, size_of
from factor_search.model.speed import Speed, calibrated, known_speed, measured, speed_of_pass
from factor_search.plan.estimate import estimate_plan, memory_refusal
from factor_search.plan.spec import parse_plan
from factor_search.search.estimate import Known, estimate_search, fitting
from factor_search.search.estimate_text import duration, summary
from factor_search.search.shares import usual_share
from factor_search.spec import JobSpec, ModelSpec, parse_spec
from tests.families import FAMILIES, MIXTURE, SMALL, tiny_model

LENGTH = 48
DENSE = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "gpt_neox",
    "stablelm",
    "cohere",
    "olmo2",
    "granite",
    "starcoder2",
)
SPEED = Speed(device="cpu, 1 thread", linear=1e9, attention=1e9, source="measured")


def spec_of(folder: Path | str = "some/model", **changes: Any) -> ModelSpec:
    return ModelSpec(id=str(folder), **changes)


def config_of(model_type: str, **changes: Any) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.for_model(model_type, **(SMALL | FAMILIES.get(model_type, {}) | changes))
    return config


def job(checkpoint: Path, texts: Path, **changes: Any) -> JobSpec:
    data = {"files": [str(texts / "*.txt")], "search_documents": 3, "validation_documents": 2, "held_out_documents": 2}
    document = {"model": str(checkpoint), "data": data, "target_length": 128, "space": {"initial_tokens": [0]}}
    return parse_spec(document | {"budget": 12} | changes)


def peak(known: Known, tokens: int) -> int:
    memory = known.memory(tokens)
    assert memory is not None
    return memory.peak


class TestOperations:
    @pytest.mark.parametrize("model_type", DENSE)
    def test_they_are_those_that_torch_counts(self, model_type: str) -> None:
        config = config_of(model_type, attn_implementation="eager")
        model = tiny_model(model_type, attn_implementation="eager")
        size = model_size(spec_of(attention="eager"), config)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model(input_ids=torch.ones(1, LENGTH, dtype=torch.long), use_cache=False)
        expected = size.operations(LENGTH, scored=LENGTH).total
        # the frequencies are multiplied with the positions by a matrix product, which is no part of the formula
        assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)

    def test_of_a_mixture_only_the_active_experts_count(self) -> None:
        dense, sparse = (config_of("mixtral", **(MIXTURE | {"num_experts_per_tok": count})) for count in (4, 2))
        all_four, two = (model_size(spec_of(), config) for config in (dense, sparse))
        assert all_four.parameters == two.parameters
        expert = 3 * SMALL["hidden_size"] * SMALL["intermediate_size"]
        assert all_four.active - two.active == SMALL["num_hidden_layers"] * 2 * expert

    def test_a_shared_expert_sees_every_token_in_headers_too(self, tmp_path: Path) -> None:
        model = tiny_model("dots1")
        model.save_pretrained(tmp_path)
        built = size_of(model, spec_of(), model.config)
        config = AutoConfig.from_pretrained(tmp_path)
        config.auto_map = {"AutoModelForCausalLM": "own.Model"}
        assert model_size(spec_of(tmp_path), config).active == built.active

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("blk.3.ffn_up_exps.weight", True),
            ("blk.3.ffn_up_shexp.weight", False),
            ("blk.3.ffn_gate_inp.weight", False),
            ("model.layers.1.block_sparse_moe.experts.0.w1.weight", True),
            ("model.layers.1.mlp.shared_experts.up_proj.weight", False),
        ],
    )
    def test_names_of_weights_say_which_are_of_experts(self, name: str, expected: bool) -> None:
        assert size_module._is_of_experts(name) is expected

    @pytest.mark.parametrize("active", size_module.ACTIVE_EXPERTS)
    def test_the_width_of_a_mixture_is_that_of_its_active_experts(self, active: str) -> None:
        config = PretrainedConfig(intermediate_size=64, moe_intermediate_size=16, num_experts=8, **{active: 2})
        assert size_module._inner(config, 32) == 2 * 16

    def test_a_causal_kernel_does_half_and_a_window_saves_only_where_the_kernel_knows_it(self) -> None:
        def attention(kernel: str, window: int | None) -> float:
            layers = (AttentionLayers(1, 2, 1, 4, 4, window),)
            size = ModelSize(
                parameters=1,
                active=1,
                vocabulary=1,
                hidden=1,
                inner=1,
                attention=layers,
                kernel=kernel,
                dtype="float32",
                stored="float32",
            )
            return size.operations(10).attention / (4 * 2 * 4)

        assert attention("eager", None) == 100
        assert attention("sdpa", None) == 55
        assert attention("sdpa", 3) == 100  # a mask is given
        assert attention("sdpa", 10) == 55
        assert attention("flash_attention_2", 3) == 1 + 2 + 8 * 3

    @pytest.mark.parametrize("model_type", sorted(FAMILIES))
    def test_the_size_is_that_of_the_built_model(self, model_type: str) -> None:
        model = tiny_model(model_type)
        from_configuration = model_size(spec_of(), config_of(model_type))
        of_model = size_of(model, spec_of(), model.config)
        assert from_configuration.parameters == sum(weight.numel() for weight in model.parameters())
        assert from_configuration.active == of_model.active > 0

    def test_without_its_class_the_size_is_that_of_the_headers(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = AutoConfig.from_pretrained(checkpoint)
        built = model_size(spec_of(checkpoint), config)
        config.auto_map = {"AutoModelForCausalLM": "own.Model"}
        from_headers = model_size(spec_of(checkpoint), config)
        assert (from_headers.parameters, from_headers.active) == (built.parameters, built.active)
        assert from_headers.key == built.key
        with pytest.raises(UnsupportedModelError, match="cannot build the model"):
            model_size(spec_of("some/model"), config)

    @pytest.mark.parametrize("changes", [{"num_hidden_layers": 1000, "num_local_experts": 60_000}])
    def test_what_cannot_be_meant_is_refused_soon(self, changes: dict[str, int]) -> None:
        with pytest.raises(UnsupportedModelError, match="cannot be meant"):
            model_size(spec_of(), config_of("mixtral", **changes))

    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(
        hidden=st.integers(1, 64),
        heads=st.sampled_from([1, 2, 4, 8]),
        groups=st.sampled_from([1, 2, 4, 8]),
        width=st.integers(1, 2000),
        layers=st.integers(1, 8),
        words=st.integers(1, 2**20),
        tokens=st.integers(1, 2**30),
        available=st.integers(0, 2**45),
    )
    def test_no_configuration_gives_an_absurd_value(
        self, hidden: int, heads: int, groups: int, width: int, layers: int, words: int, tokens: int, available: int
    ) -> None:
        shape = {"hidden_size": hidden * heads * 2, "num_attention_heads": heads, "num_key_value_heads": groups}
        config = config_of("llama", **shape, intermediate_size=width, num_hidden_layers=layers, vocab_size=words)
        try:
            size = model_size(spec_of(), config)
        except FactorSearchError:
            return
        operations, needed = size.operations(tokens), evaluation_memory(size, tokens)
        assert 0 <= operations.linear < math.inf
        assert 0 < operations.attention < math.inf
        assert needed.peak >= needed.weights + needed.activations > 0
        assert evaluation_memory(size, 2 * tokens).peak >= needed.peak
        assert training_memory(size, tokens, 1).peak > 0
        longest = largest_length(size, available, tokens)
        if longest is not None:
            assert evaluation_memory(size, longest).peak <= available
            assert 2 * longest + 2 >= tokens or evaluation_memory(size, 2 * longest + 2).peak > available


MEASURE = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from factor_search.model.allocator import keep_freed_memory
from factor_search.model.losses import token_losses
from factor_search.model.memory import PeakMemory, resident_bytes
keep_freed_memory()
torch.set_num_threads(1)
config = LlamaConfig(
    vocab_size=4000, hidden_size=512, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=2,
)
torch.set_grad_enabled(False)
token_losses(LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    num_attention_heads=1)).eval(), torch.ones(1, 8, dtype=torch.long))
before = resident_bytes()
peak = PeakMemory()
model = LlamaForCausalLM(config).eval()
token_losses(model, torch.ones(1, int(sys.argv[1]), dtype=torch.long))
print(peak.bytes() - before)
"""


class TestMemory:
    def test_it_is_what_a_process_takes(self) -> None:
        tokens = 4096
        ran = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tokens)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[1],
        )
        config = AutoConfig.for_model(
            "llama",
            vocab_size=4000,
            hidden_size=512,
            intermediate_size=2048,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=2,
        )
        needed = evaluation_memory(model_size(spec_of(dtype="float32"), config), tokens)
        assert needed.weights + needed.activations == pytest.approx(int(ran.stdout), rel=0.25)

    def test_another_precision_than_the_file_has_costs_a_copy_while_it_is_loaded(self) -> None:
        config = config_of("llama", dtype="float32")
        same, other = (model_size(spec_of(dtype=dtype), config) for dtype in ("float32", "bfloat16"))
        assert evaluation_memory(same, 8).loading == 4 * same.parameters
        assert evaluation_memory(other, 8).loading == (4 + 2) * same.parameters

    def test_eager_attention_takes_the_square_of_the_length(self) -> None:
        size = model_size(spec_of(attention="eager"), config_of("llama"))
        short, long = (evaluation_memory(size, tokens).activations for tokens in (4096, 8192))
        assert 3.5 < long / short < 4.1

    def test_the_highest_mark_is_of_what_was_used_since(self) -> None:
        peak, before = PeakMemory(), resident_bytes()
        with mmap.mmap(
            -1, 2**27, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        ) as block:  # no memory that was freed before
            for page in range(0, 2**27, mmap.PAGESIZE):
                block[page] = 1
        found = peak.bytes()
        assert found is not None
        assert before + 0.9 * 2**27 < found < before + 2**28

    def test_limits_of_control_groups_count(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        free = available_bytes()
        assert free is not None
        assert free > resident_bytes()
        monkeypatch.setattr(memory_module, "_limits", lambda: iter([free // 2]))
        assert available_bytes() == free // 2


class TestSpeed:
    @pytest.fixture(autouse=True)
    def _on_a_busy_machine_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("factor_search.model.speed.LEAST_SHARE", 0.0)

    def test_a_speed_that_was_measured_beside_others_is_not_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("factor_search.model.speed.LEAST_SHARE", 1e9)
        model = tiny_model("llama", vocab_size=251)
        size = size_of(model, spec_of(), model.config)
        calibrated(model, size, 48)
        assert known_speed(size, torch.device("cpu"), 48) is None

    def test_both_speeds_are_found_again(self) -> None:
        size = model_size(spec_of(), config_of("llama", max_position_embeddings=4096))
        truth = Speed(device="cpu", linear=2e9, attention=5e8, source="measured")
        found = measured(lambda tokens: truth.seconds(size.operations(tokens)), size, 2048, "cpu")
        assert (found.linear, found.attention) == pytest.approx((2e9, 5e8), rel=0.01)
        assert found.length == 2048

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.integers(2, 10**6))
    def test_noise_never_gives_an_absurd_speed(self, times: list[float], tokens: int) -> None:
        size = model_size(spec_of(), config_of("llama"))
        answers = iter(times * 100)
        found = measured(lambda length: next(answers), size, tokens, "cpu")
        assert 0 < found.linear < math.inf
        assert 0 < found.attention < math.inf
        assert 0 < found.seconds(size.operations(tokens)) < math.inf

    def test_a_measured_speed_is_kept_until_a_library_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny_model("llama", hidden_size=48, num_attention_heads=3, num_key_value_heads=3)
        size = size_of(model, spec_of(), model.config)
        first = calibrated(model, size, 32)
        assert first.calibrated
        assert first.linear > 0
        assert calibrated(model, size, 32) == first
        files = len(list(cache_folder("speeds").iterdir()))
        monkeypatch.setattr(torch, "__version__", "99.0")
        calibrated(model, size, 32)
        assert len(list(cache_folder("speeds").iterdir())) == files + 1

    @pytest.mark.parametrize(
        "damage",
        [
            "",
            "{",
            "[]",
            '{"device": "cpu"}',
            '{"device": "x", "linear": -1, "attention": 1, "source": "measured", "length": 1}',
        ],
    )
    def test_a_damaged_file_of_the_cache_is_measured_again(self, damage: str) -> None:
        model = tiny_model("llama", hidden_size=32, num_attention_heads=2, num_key_value_heads=2)
        size = size_of(model, spec_of(), model.config)
        calibrated(model, size, 16)
        newest = max(cache_folder("speeds").iterdir(), key=lambda file: file.stat().st_mtime_ns)
        newest.write_text(damage)
        assert calibrated(model, size, 16).linear > 0
        assert json.loads(newest.read_text())["source"] == "measured"

    def test_an_earlier_job_says_how_fast_it_was(self) -> None:
        size = model_size(spec_of(), config_of("llama"))
        found = speed_of_pass(size, 100, 0.01, "cpu")
        assert found is not None
        assert not found.calibrated
        assert found.seconds(size.operations(100)) == pytest.approx(1.0)
        assert speed_of_pass(size, 100, 0.0, "cpu") is None


class TestJob:
    def test_tokens_and_evaluations_are_those_that_it_takes(
        self, checkpoint: Path, texts: Path, tmp_path: Path
    ) -> None:
        spec = job(checkpoint, texts, strategy="cma", budget=30)
        seen: list[dict[str, Any]] = []
        from factor_search.search.selection import JobWatcher

        result = run_job(spec, tmp_path / "out", JobWatcher(estimate=seen.append))
        (estimate,) = seen
        assert estimate["evaluation"]["tokens"] == 3 * 127
        assert estimate["search"]["tokens"] == result.state.tokens == 30 * 3 * 127
        assert estimate["held_out"]["tokens"] == sum(sum(one.tokens) for one in result.held_out.values())
        finalists = len(result.validation) - len(result.methods)
        assert estimate["validation"]["evaluations"] == len(result.validation) + 5 - finalists
        assert estimate["speed"]["calibrated"]
        assert estimate["fits"]
        assert estimate["total"]["seconds"] > 0
        assert result.peak_memory is not None
        assert result.seconds is not None
        assert {part: len(found) for part, found in estimate["documents"].items()} == {
            "search": 3,
            "validation": 2,
            "held_out": 2,
        }

    def test_no_weights_are_read(self, checkpoint: Path, texts: Path, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        for file in checkpoint.iterdir():
            if file.suffix != ".safetensors":
                (folder / file.name).write_bytes(file.read_bytes())
        estimate = estimate_job(job(folder, texts), available=2**40)
        assert estimate["memory"]["weights"] == 4 * sum(
            one.numel() for one in tiny_model("llama", vocab_size=257).parameters()
        )
        assert estimate["speed"]["source"] == "measured"
        assert estimate["fits"] is True
        assert estimate["largest_length"] is None

    @pytest.mark.parametrize(
        ("changes", "candidates"),
        [
            ({"budget": {"candidates": None, "tokens": 3810}, "strategy": "cma"}, 10),
            ({"budget": {"candidates": None, "seconds": 1e-3}, "strategy": "cma"}, 0),
            ({"budget": {"candidates": None, "no_improvement": 5}, "strategy": "cma"}, 200),
            ({"budget": 10**6, "strategy": {"kind": "evolution", "population": 10, "generations": 2}}, 74),
        ],
    )
    def test_budgets_end_the_search(self, checkpoint: Path, texts: Path, changes: Any, candidates: int) -> None:
        estimate = estimate_job(job(checkpoint, texts, **changes), lambda *_: SPEED)
        assert estimate["search"]["candidates"] == candidates

    def test_workers_share_what_a_generation_has(self, checkpoint: Path, texts: Path) -> None:
        spec = job(checkpoint, texts, strategy={"kind": "cma", "population": 8})
        one, two, three, many = (estimate_job(spec, lambda *_: SPEED, workers=n) for n in (1, 2, 3, 50))
        assert one["search"]["seconds"] == pytest.approx(2 * two["search"]["seconds"])
        assert three["search"]["seconds"] == pytest.approx(3 / 8 * one["search"]["seconds"])
        assert many["search"]["seconds"] == pytest.approx(one["search"]["seconds"] / 8)

    def test_needles_score_answers_and_measure_the_plain_text_too(self, checkpoint: Path, texts: Path) -> None:
        plain, needles = (
            estimate_job(job(checkpoint, texts, objective=kind, target_length=256), lambda *_: SPEED)
            for kind in ("perplexity", "needle")
        )
        assert needles["evaluation"]["tokens"] < plain["evaluation"]["tokens"] / 10
        assert needles["evaluation"]["operations"] < plain["evaluation"]["operations"]
        assert needles["total"]["seconds"] > needles["search"]["seconds"] + needles["held_out"]["seconds"]

    def test_sliding_windows_cost_each_window(self, checkpoint: Path, texts: Path) -> None:
        spec = job(checkpoint, texts, objective={"stride": 64, "tokens": 256})
        read = estimate_job(spec, lambda *_: SPEED)
        unread = estimate_job(spec, lambda *_: SPEED, read=False)
        assert read["evaluation"]["tokens"] == unread["evaluation"]["tokens"] == 3 * 255
        assert read["evaluation"]["seconds"] == pytest.approx(unread["evaluation"]["seconds"])

    def test_what_is_unknown_is_null_with_the_reason(self, checkpoint: Path, texts: Path, tmp_path: Path) -> None:
        short = estimate_job(job(checkpoint, texts, target_length=100_000), lambda *_: SPEED)
        assert short["documents"] is None
        assert any("the documents cannot be used" in note for note in short["notes"])
        rough = estimate_job(job(checkpoint, texts), lambda *_: None)
        assert rough["speed"]["calibrated"] is False
        assert any("rough" in note for note in rough["notes"])
        nothing = Known(size=None, speed=None, notes=("why",))
        unknown = estimate_search(job(checkpoint, texts), nothing, 3, None, original_length=64)
        assert unknown["memory"] is unknown["fits"] is unknown["total"]["seconds"] is None
        assert "why" in summary(unknown)

    def test_what_does_not_fit_is_refused_with_the_length_that_would(self, checkpoint: Path, texts: Path) -> None:
        spec = job(checkpoint, texts, target_length=2**20)
        assert memory_refusal(spec, 2**40, "it") is None
        refused = memory_refusal(spec, 600 * 2**20, "this machine")
        assert refused is not None
        assert "largest target_length that would fit is" in refused
        largest = int(refused.rsplit(" tokens")[0].rsplit(" ", 1)[1].replace(",", ""))
        assert memory_refusal(job(checkpoint, texts, target_length=largest), 600 * 2**20, "it") is None
        weights = memory_refusal(spec, 2**20, "this machine")
        assert weights is not None
        assert "the libraries and the weights alone" in weights

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.integers(2, 40_000), st.sampled_from(["sdpa", "eager"]), st.floats(0.05, 1.2))
    def test_a_gpu_evaluates_many_windows_at_once_and_a_length_that_is_said_to_fit_does(
        self, tokens: int, kernel: str, share: float
    ) -> None:
        shape = {"vocab_size": 32_000, "hidden_size": 1024, "intermediate_size": 8192, "num_attention_heads": 8}
        size = model_size(spec_of(attention=kernel), config_of("llama", **shape))
        speed = Speed(device="cuda, X", linear=1.0, attention=1.0, source="measured")
        needed = Known(size=size, speed=speed).memory(tokens)
        assert needed is not None
        known = Known(size=size, speed=speed, available=round(share * needed.peak))
        found, largest = fitting(tokens, known), None
        if found["fits"] is False:
            largest = found["largest_length"]
            others = range(tokens - 1, 0, -max(1, tokens // 50))
            longest = max((one for one in others if peak(known, one) <= (known.available or 0)), default=None)
            assert (largest is None) <= (longest is None)
            assert found["too_large"]
        if largest is not None:
            assert largest < tokens
            assert peak(known, largest) <= (known.available or 0)
            assert longest is None or largest >= 0.99 * longest

    def test_what_is_said_to_be_too_large_is(self, checkpoint: Path) -> None:
        """The weights of a fine-tuning that does not fit may: then a smaller batch does."""
        plan = parse_plan(
            {
                "model": str(checkpoint),
                "data": {"files": ["a.txt"]},
                "stages": [
                    {"kind": "search", "target_length": 256},
                    {"kind": "finetune", "settings": {"batch_size": 4096}},
                ],
            }
        )
        for available, said in (
            (900 * 2**20, "a smaller batch_size"),
            (441 * 2**20, "less is needed with method lora"),
        ):
            found = estimate_plan(plan, lambda *_: SPEED, available=available, read=False)
            training = found["stages"][1]
            assert (found["fits"], found["largest_length"]) == (False, None)
            assert said in found["too_large"]
            assert training["name"] in found["too_large"]
            refused = memory_refusal(plan, available, "it")
            assert refused is not None
            assert found["too_large"] in refused

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(st.integers(1, 10**6), st.sampled_from(["auto", "cma", "evolution", "random"]), st.integers(1, 64))
    def test_shares_are_shares(self, candidates: int, strategy: str, documents: int) -> None:
        data = {"files": ["x"], "search_documents": documents}
        spec = parse_spec({"model": "m", "data": data, "target_length": 64, "strategy": strategy, "racing": True})
        assert 0 < usual_share(spec, candidates) <= 1


class TestPlan:
    @pytest.mark.parametrize("recipe", ["longrope", "longrope2"])
    def test_every_stage_has_its_cost(self, checkpoint: Path, texts: Path, recipe: str) -> None:
        data = {
            "files": [str(texts / "*.txt")],
            "search_documents": 2,
            "validation_documents": 2,
            "held_out_documents": 2,
        }
        document = {"model": str(checkpoint), "data": data, "recipe": recipe, "target_length": 256}
        if recipe == "longrope":
            document["middle_length"] = 128
        plan = parse_plan(document)
        estimate = estimate_plan(plan, lambda *_: SPEED, available=2**40)
        assert [stage["kind"] for stage in estimate["stages"]] == [stage.kind for stage in plan.expanded().stages or ()]
        assert all(stage["total"]["seconds"] > 0 and stage["fits"] for stage in estimate["stages"])
        assert estimate["total"]["seconds"] == pytest.approx(sum(one["total"]["seconds"] for one in estimate["stages"]))
        (training,) = [stage["training"] for stage in estimate["stages"] if stage["kind"] == "finetune"]
        assert training["steps"] == 400
        assert training["tokens"] == 400 * 64
        size = model_size(spec_of(checkpoint, dtype="float32"), AutoConfig.from_pretrained(checkpoint))
        passes = 3 * 400 * size.operations(64, 64).total
        assert training["operations"] == pytest.approx(passes, rel=0.2)
        assert summary(estimate).startswith("estimate: about ")


class TestCommandLine:
    def test_it_prints_the_estimate(
        self, checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "job.json"
        file.write_text(json.dumps(job(checkpoint, texts).model_dump(mode="json", exclude_unset=True)))
        assert main(["estimate", str(file), "--json", "--workers", "2", "--set", "budget.candidates=7"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["search"]["candidates"] == 7
        assert found["workers"] == 2
        assert main(["estimate", str(file)]) == 0
        shown = capsys.readouterr().out
        assert "12 candidates as" in shown
        assert "3 search, 2 validation, 2 held-out" in shown

    @pytest.mark.parametrize(
        ("arguments", "status"), [(["--workers", "0"], 2), (["--set", "target_length=x"], 1), (["nowhere.json"], 1)]
    )
    def test_bad_input_is_one_line(
        self, checkpoint: Path, texts: Path, arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given_ = ["estimate", "--model", str(checkpoint), "--data", str(texts / "*.txt"), "--target-length", "128"]
        if status == 2:
            with pytest.raises(SystemExit) as left:
                main([*given_, *arguments])
            assert left.value.code == 2
        else:
            assert main([*(given_ if arguments[0].startswith("-") else given_[:1]), *arguments]) == status
        assert "Traceback" not in capsys.readouterr().err

    def test_run_refuses_what_does_not_fit_unless_it_is_told_to(
        self,
        checkpoint: Path,
        texts: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(memory_module, "available_bytes", lambda device="cpu": 2**20)
        given_ = ["run", "--model", str(checkpoint), "--data", str(texts / "*.txt"), "--target-length", "128"]
        given_ += ["--candidates", "2", "--set", "space.initial_tokens=[0]", "--set", "data.search_documents=2"]
        given_ += ["--set", "data.validation_documents=2", "--set", "data.held_out_documents=2"]
        assert main([*given_, "--out", str(tmp_path / "out")]) == 1
        assert "--ignore-memory runs it nevertheless" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
        assert main([*given_, "--out", str(tmp_path / "out"), "--ignore-memory"]) == 0
        shown = capsys.readouterr()
        assert "estimate: about" in shown.err
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["taken"]["tokens"] > 0
        assert report["taken"]["peak_memory"] > 2**20
        assert report["estimate"]["total"]["tokens"] > 0
        page = (tmp_path / "out" / "report.html").read_text()
        assert "<h2>Cost</h2>" in page
        assert "peak memory" in page


def test_the_report_of_a_plan_sets_both_beside_each_other_for_each_stage(
    checkpoint: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"files": [str(texts / "*.txt")], "search_documents": 2, "validation_documents": 2, "held_out_documents": 2}
    stages = [
        {"kind": "search", "target_length": 128, "strategy": "cma", "budget": 9},
        {"kind": "evaluate", "passkey": None},
    ]
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"model": str(checkpoint), "data": data, "stages": stages}))
    assert main(["run", str(file), "--out", str(tmp_path / "out")]) == 0
    assert "estimate: about" in capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    search, evaluation = report["stages"]
    for stage in (search, evaluation):
        assert stage["estimate"]["total"]["seconds"] > 0
        assert stage["taken"]["seconds"] > 0
        assert stage["taken"]["peak_memory"] > 2**20
    assert search["estimate"]["total"]["tokens"] >= search["taken"]["tokens"] > 9 * 2 * 127
    assert report["estimate"]["total"]["seconds"] > 0
    assert "<h2>Cost</h2>" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (80, "80 s"), (120, "2.0 min"), (6000, "1.7 h"), (200_000, "2.3 d")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text
