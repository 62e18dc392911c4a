"""Loads llama.cpp and scores tokens; run as a script with a file of what to do and a file for the result.

A score is the log-probability of a token that was forced. The server reports it before the sampler, so the force does
not change it. The address is a Unix socket where there are such, so that no network port is opened.
"""

import json
import math
import socket
import sys
import time
from pathlib import Path
from typing import Any

FORCE = 1e4
"""Added to the logit of the token that is wanted, before the sampler."""
LOG_SECONDS = 0.2
"""The engine's log is written by a thread, which the end of the process would cut short."""
ALL_WORDS = 10**7
"""More words than any vocabulary has."""


def main(work_file: str, result_file: str) -> None:
    """Score, and write either ``log_probabilities`` or ``error`` as JSON."""
    work = json.loads(Path(work_file).read_text())
    try:
        result: dict[str, Any] = {"log_probabilities": scores(**work)}
    except (RuntimeError, ValueError, KeyError) as error:
        result = {"error": str(error)}
        time.sleep(LOG_SECONDS)
    Path(result_file).write_text(json.dumps(result))


def scores(model: str, ids: list[int], positions: list[int], threads: int, socket: str) -> list[float]:
    """Log-probabilities of ``ids[p]`` after ``ids[:p]``, in the order of the positions."""
    server = start(model, max(positions) + 1, threads, socket)
    found = {p: score(server, ids[:p], ids[p], ids) for p in sorted(set(positions))}  # the cache grows with p
    return [found[p] for p in positions]


def start(model: str, context: int, threads: int, address: str) -> Any:
    """Load a model in float32 with one sequence, without a graphics card."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.n_ctx = context + 8
    parameters.n_parallel = 1
    parameters.n_gpu_layers = 0
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.no_extra_bufts = True  # would repack weights
    for processors in (parameters.cpuparams, parameters.cpuparams_batch):
        processors.n_threads = threads
    for unwanted in ("warmup", "fit_params", "ui", "ctx_shift"):
        setattr(parameters, unwanted, False)
    if hasattr(socket, "AF_UNIX") and len(address) < 100:
        parameters.hostnames = [f"{address}.sock"]
    parameters.verbosity = 1  # errors
    return xllamacpp.Server(parameters)


def score(server: Any, prompt: list[int], token: int, ids: list[int]) -> float:
    """The log-probability of a token.

    The server sums over the vocabulary in float32, which is off by 1e-4 for one of 49,152 words. So it lists all words,
    and the sum is taken again. A token whose bytes are not whole characters is never reported as the next one: then
    another one is forced, and the token is looked up in the list.

    Raises:
        RuntimeError: the engine refuses the request.
    """
    for forced in dict.fromkeys([token, *ids]):
        request = {"prompt": prompt, "n_predict": 1, "logit_bias": [[forced, FORCE]], "n_probs": ALL_WORDS}
        answer = server.handle_completions(request | {"temperature": 0.0, "cache_prompt": True})
        if "error" in answer:
            raise RuntimeError(answer["error"]["message"])
        if (reported := answer["choices"][0]["logprobs"]) is not None:
            listed = {one["id"]: one["logprob"] for one in reported["content"][0]["top_logprobs"]}
            return float(listed[token] - math.log(math.fsum(map(math.exp, listed.values()))))
    raise RuntimeError(f"it reports no probability of token {token}")


if __name__ == "__main__":
    main(*sys.argv[1:])
