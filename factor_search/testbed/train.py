"""Trains the shipped model: ``python -m factor_search.testbed.train --out DIR``.

The model is a Llama with 3.1 million parameters, one token per byte, context 256, head_dim 64 and rope_theta 10,000.
Muon (momentum orthogonalised by Newton-Schulz iterations) optimises the matrices, and AdamW the other weights. The
learning rate warms up, is constant, and decays linearly to zero. Training takes about an hour on two cores with
bfloat16 matrix units.
"""

import argparse
import json
import math
import platform
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from factor_search.testbed.byte_tokenizer import byte_tokenizer
from factor_search.testbed.corpus import PACKAGES, held_out_files, training_documents

CONTEXT = 256
END_OF_TEXT_ID = 256


def build_model(
    hidden: int = 256, layers: int = 4, heads: int = 4, key_value_heads: int = 2, intermediate: int = 768
) -> LlamaForCausalLM:
    """Build a randomly initialised Llama with head_dim 64 and tied embeddings."""
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def token_stream(documents: list[bytes]) -> np.ndarray:
    """Concatenate all documents, each preceded by the end-of-text token: uint16 of shape (tokens,)."""
    pieces = []
    for document in documents:
        pieces.append(np.array([END_OF_TEXT_ID], dtype=np.uint16))
        pieces.append(np.frombuffer(document, dtype=np.uint8).astype(np.uint16))
    return np.concatenate(pieces)


def batch_of_windows(stream: np.ndarray, batch: int, generator: np.random.Generator, context: int = CONTEXT) -> Tensor:
    """Draw random windows of context + 1 tokens: int64 of shape (batch, context + 1)."""
    starts = generator.integers(0, len(stream) - context - 1, size=batch)
    windows = np.stack([stream[start : start + context + 1] for start in starts])
    return torch.from_numpy(windows.astype(np.int64))


@torch.inference_mode()
@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, windows_per_module: int = 64) -> float:
    """Compute the mean loss (nats per byte) over the first windows of 256 bytes of every held-out module."""
    model.eval()
    total, count = 0.0, 0
    for file in held_out_files():
        tokens = torch.from_numpy(np.frombuffer(file.read_bytes(), dtype=np.uint8).astype(np.int64))
        windows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)[:windows_per_module]
        logits = model(windows, use_cache=False).logits[:, :-1]
        total += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="sum"
        ).item()
        count += windows[:, 1:].numel()
    model.train()
    return total / count


def learning_rate_factor(step: int, steps: int, warm_up: int = 100, decay_share: float = 0.5) -> float:
    """Return the learning rate relative to its maximum: warm-up, plateau, and linear decay to zero."""
    decay_steps = decay_share * steps
    return min(1.0, (step + 1) / warm_up, (steps - step) / decay_steps)


def train(
    model: PreTrainedModel,
    stream: np.ndarray,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    context: int = CONTEXT,
    batch: int,
    muon_rate: float,
    adam_rate: float,
    seed: int,
    compiled: bool,
) -> int:
    """Train for a number of steps or for about the given time, and return the number of steps.

    For a given time, the number of steps follows from the speed of the first 40 steps.
    """
    generator = np.random.default_rng(seed)
    hidden = [
        p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "lm_head" not in name
    ]
    rest = [p for p in model.parameters() if all(p is not h for h in hidden)]
    optimizers = [
        torch.optim.Muon(hidden, lr=muon_rate, momentum=0.95, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    base_rates = [muon_rate, adam_rate]
    calibration, step, running = 40, 0, 0.0
    steps = 10**9 if steps is None else steps
    model.train()
    forward = torch.compile(model) if compiled else model
    start = time.monotonic()
    while step < steps:
        if step == 2:  # compilation has finished
            start = time.monotonic()
        if seconds is not None and step == calibration:
            steps = max(calibration + 1, int((calibration - 2) * seconds / (time.monotonic() - start)))
            print(f"{steps} steps of {batch * context} tokens", flush=True)
        for optimizer, rate in zip(optimizers, base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * learning_rate_factor(step, steps)
        windows = batch_of_windows(stream, batch, generator, context)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = forward(windows[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        step += 1
        if step % 200 == 0:
            spent = time.monotonic() - start
            line = f"step {step}/{steps} {spent:.0f} s loss {running:.4f} {step * batch * context / spent:.0f} tokens/s"
            if step % 2000 == 0:
                loss_held_out = held_out_loss(model)
                line += f" held-out {loss_held_out:.4f} perplexity {math.exp(loss_held_out):.3f}"
            print(line, flush=True)
    return steps


def save(model: PreTrainedModel, folder: Path, context: int = CONTEXT) -> None:
    """Write the weights as float16, which halves the size; the configuration says float32, so they load as float32."""
    model.to(torch.float16)
    model.save_pretrained(folder)
    model.to(torch.float32)
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    byte_tokenizer(context).save_pretrained(folder)


def main() -> None:
    """Train and save the model, and print its held-out perplexity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=55.0)
    parser.add_argument("--batch", type=int, default=64, help="windows of 256 bytes in a step")
    parser.add_argument("--muon-rate", type=float, default=6e-3)
    parser.add_argument("--adam-rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="needs a C++ compiler")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    model = build_model()
    stream = token_stream(training_documents())
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(stream):,} training bytes", flush=True)
    steps = train(
        model,
        stream,
        seconds=60 * arguments.minutes,
        batch=arguments.batch,
        muon_rate=arguments.muon_rate,
        adam_rate=arguments.adam_rate,
        seed=arguments.seed,
        compiled=arguments.compile,
    )
    save(model, arguments.out)
    perplexity = math.exp(held_out_loss(LlamaForCausalLM.from_pretrained(arguments.out)))
    record = {
        "settings": {name: value for name, value in vars(arguments).items() if name not in ("out", "threads")},
        "steps": steps,
        "tokens_a_step": arguments.batch * CONTEXT,
        "training_bytes": len(stream),
        "python": platform.python_version(),
        "packages": {package: metadata.version(package) for package in PACKAGES},
        "held_out_perplexity_per_byte": perplexity,
    }
    (arguments.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"saved {arguments.out}; held-out perplexity per byte at 256: {perplexity:.4f}")


if __name__ == "__main__":
    main()
