"""Peak memory of an evaluation compared with full logits: ``python -m bench.memory``.

The model is a random two-layer Llama with a vocabulary of 128,256. Each measurement runs in its own process, which
reports its peak resident memory minus that of the loaded model. Full logits, ``model(labels=input_ids)``, are measured
at growing lengths while the next one is expected to fit, and extrapolated linearly from the last two.
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from factor_search.model.allocator import keep_freed_memory
from factor_search.model.losses import token_losses

VOCABULARY = 128_256
LENGTH = 32_768


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def peak_of(way: str, length: int) -> int:
    """Bytes beyond the loaded model, measured in this process."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, VOCABULARY, (1, length))
    if way == "chunked":
        keep_freed_memory()
    before = resident_bytes()
    with torch.inference_mode():
        loss = token_losses(model, ids).mean() if way == "chunked" else model(input_ids=ids, labels=ids).loss
    assert loss.isfinite()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def in_own_process(way: str, length: int) -> int:
    command = [sys.executable, "-m", "bench.memory", "--way", way, "--length", str(length)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=["chunked", "full"])
    parser.add_argument("--length", type=int, default=LENGTH)
    arguments = parser.parse_args()
    if arguments.way:
        print(peak_of(arguments.way, arguments.length))
        return
    chunked = in_own_process("chunked", LENGTH)
    print(f"chunked, {LENGTH} tokens: {chunked / 1e9:.3f} GB measured")
    full: list[tuple[int, int]] = []
    length = 1024
    while length <= LENGTH and (not full or 2.2 * full[-1][1] < 0.8 * available_bytes()):
        full.append((length, in_own_process("full", length)))
        print(f"full logits, {length} tokens: {full[-1][1] / 1e9:.3f} GB measured")
        length *= 2
    (short, less), (long, more) = full[-2:]
    at_length = more + (more - less) / (long - short) * (LENGTH - long)
    how = "measured" if long == LENGTH else "extrapolated"
    print(f"full logits, {LENGTH} tokens: {at_length / 1e9:.3f} GB {how}")
    print(f"ratio chunked / full: {chunked / at_length:.4f} (1 / {at_length / chunked:.0f})")


if __name__ == "__main__":
    main()
