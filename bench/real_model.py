"""A real pretrained model from search to engine: ``python -m bench.real_model --out DIR``.

SmolLM2-135M-Instruct, a GGUF file, is extended from 8,192 to 16,384 tokens, or to another target: a search on books (or
on modules of the standard library), perplexity on held-out documents, passkeys and needles before and after, a patched
GGUF file, and the perplexity that llama.cpp itself computes with it, untouched, with YaRN, and with the found factors.
Every step is kept in the folder; the same command continues. Two cores take hours; ``--steps`` runs some of them.
"""

import argparse
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import factor_search as fs
from api.cli.demo import pretrained
from api.cli.pretrained import smollm2
from api.cli.progress import JobProgress
from factor_search.export.contract import Source
from factor_search.export.registry import export
from factor_search.export.verification.registry import scorer_named
from factor_search.export.verification.verify import reference
from factor_search.factors_file import FactorsFile, FactorsModel, factors_file
from factor_search.files.json_documents import read_json, write_json
from factor_search.measure.comparison import first_tokens
from factor_search.measure.statistics import paired_difference
from factor_search.methods import closed_form
from factor_search.model.configuration import read_geometry
from factor_search.model.loading import load_config
from factor_search.spec import ModelSpec

BOOKS = Path(os.environ.get("FACTOR_SEARCH_BOOKS") or Path(__file__).resolve().parents[2] / "shared" / "data" / "books")
SEARCHED, HELD_OUT = (
    ("complete_angler.txt", "devils_dictionary.txt"),
    ("critical_essays.txt", "little_colonels_hero.txt"),
)
"""Books for search and validation, and others of which pieces are held out."""
MODEL = "SmolLM2.gguf"
SCORED = 256
"""Positions of a text that llama.cpp scores, evenly beyond the original length."""


@dataclass(frozen=True)
class Setting:
    """What is run, and where its results are."""

    out: Path
    target: int
    candidates: int
    documents: tuple[int, int, int]
    """For search, validation and held-out."""
    baselines: tuple[str, ...]
    """Closed forms that are measured beside what was found."""

    @property
    def model(self) -> ModelSpec:
        return ModelSpec(id=MODEL, dtype="bfloat16")

    @property
    def spec(self) -> dict[str, Any]:
        """The search; its paths are links in the folder, so that its evaluations serve on any machine."""
        spec: dict[str, Any] = pretrained(Path(MODEL), self.candidates)
        spec |= {"target_length": self.target, "baselines": list(self.baselines)}
        parts = ("search_documents", "validation_documents", "held_out_documents")
        data: dict[str, Any] = dict(spec["data"]) | dict(zip(parts, self.documents, strict=True))
        if BOOKS.is_dir():
            data |= {
                "files": [f"texts/{name}" for name in SEARCHED],
                "held_out_files": [f"texts/{name}" for name in HELD_OUT],
                "cut_long_documents": True,
            }
        return spec | {"data": data}

    def enter(self) -> None:
        """Make the folder the current one, with links to the model and the books."""
        self.out.mkdir(parents=True, exist_ok=True)
        os.chdir(self.out)
        for link, target in ((Path(MODEL), smollm2()), (Path("texts"), BOOKS)):
            link.unlink(missing_ok=True)
            link.symlink_to(target)

    @property
    def held_out(self) -> list[str]:
        data = self.spec["data"]
        files: list[str] = data.get("held_out_files") or data["files"]
        return files

    def found(self) -> FactorsFile:
        return fs.load_factors(Path("search", "factors.json"))

    def method(self, name: str) -> FactorsFile:
        geometry = read_geometry(load_config(self.model))
        described = FactorsModel.of(self.model.id, None, geometry)
        return factors_file(closed_form(name, geometry, self.target), described, self.target)

    def compared(self) -> dict[str, FactorsFile]:
        """The model untouched, YaRN, and what was found."""
        return {"none": self.method("none"), "yarn": self.method("yarn"), "found": self.found()}


def run_search(setting: Setting) -> dict[str, Any]:
    """Search, validation and held-out documents; kept as by ``factor-search run``."""
    spec = setting.spec
    rest = {key: value for key, value in spec.items() if key not in ("model", "data", "target_length")}
    model = setting.model.model_dump(exclude_unset=True)
    progress = JobProgress()
    try:
        result = fs.search_factors(
            model, spec["data"], setting.target, out="search", watcher=progress.watcher(), **rest
        )
    finally:
        progress.close()
    print(result.table())
    return {"comparison": result.report["comparison"], "results": result.report["results"]}


def run_retrieval(setting: Setting) -> dict[str, Any]:
    """Passkeys within and beyond the original length, and needles; each measurement is kept, the most telling first."""
    original, target = setting.found().model.original_length, setting.target
    within, beyond = [original // 4, original // 2, original], [(original + target) // 2, target]
    asked = [("passkey", "found", length) for length in within + beyond]
    asked += [("passkey", "none", length) for length in [*within, target]] + [("passkey", "yarn", target)]
    asked += [("needle", name, target) for name in ("found", "yarn", "none")]
    compared = setting.compared()
    figures: dict[str, Any] = {}
    for task, name, length in asked:
        kept = Path("retrieval", f"{task}-{name}-{length}.json")
        basis = {"factors": compared[name].factors.as_json(), "documents": 2}
        measured = once(kept, basis, partial(_retrieved, setting, compared[name], task, length))
        print(name, task, length, measured["table"], flush=True)
        figures.setdefault(name, {})[f"{task} {length}"] = measured["result"]
    return figures


def _retrieved(setting: Setting, factors: FactorsFile, task: Any, length: int) -> dict[str, Any]:
    model = setting.model.model_dump(exclude_unset=True)
    result = fs.evaluate_factors(model, setting.held_out, length, factors, task=task, documents=2)
    return {"table": result.table(), "result": result.as_json()}


def once(kept: Path, basis: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured, from its file if it has the same basis."""
    if not kept.exists() or read_json(kept, RuntimeError)["basis"] != basis:
        kept.parent.mkdir(exist_ok=True)
        write_json(kept, {"basis": basis, "measured": measure()})
    measured: dict[str, Any] = read_json(kept, RuntimeError)["measured"]
    return measured


def run_engine(setting: Setting) -> dict[str, Any]:
    """Patched GGUF files, and the perplexity that llama.cpp and transformers give the same positions of texts."""
    original = setting.found().model.original_length
    positions = [original + round(i * (setting.target - 1 - original) / (SCORED - 1)) for i in range(SCORED)]
    figures: dict[str, Any] = {}
    for text in setting.held_out:
        for name, file in setting.compared().items():
            kept = Path("engine", f"{Path(text).stem}-{name}.json")
            basis = {"factors": file.factors.as_json(), "positions": positions}
            scores = once(kept, basis, partial(_scored, setting, file, Path(f"{name}.gguf"), text, positions))
            figures.setdefault(name, {})[Path(text).name] = scores
            perplexities = " ".join(f"{engine} {_perplexity(found):.4f}" for engine, found in scores.items())
            print(f"{Path(text).name} {name}: {perplexities}", flush=True)
    return figures | {"summary": _summary(figures)}


def _scored(
    setting: Setting, file: FactorsFile, patched: Path, text: str, positions: Sequence[int]
) -> dict[str, list[float]]:
    ids = first_tokens(setting.model, [text], setting.target)
    source = Source(file, setting.model, check=False)
    patched.unlink(missing_ok=True)
    export("gguf", source, patched)
    ours = reference(source, ids, positions).found
    theirs = scorer_named("llama.cpp").log_probabilities(patched, ids, positions)
    return {"transformers": list(ours), "llama.cpp": list(theirs)}


def _summary(figures: dict[str, dict[str, dict[str, list[float]]]]) -> dict[str, Any]:
    """Perplexity by both, and the paired difference between found and YaRN over texts."""
    engines = ("transformers", "llama.cpp")
    means = {
        name: {engine: [-math.fsum(text[engine]) / len(text[engine]) for text in texts.values()] for engine in engines}
        for name, texts in figures.items()
    }
    perplexities = {
        name: {engine: math.exp(math.fsum(losses) / len(losses)) for engine, losses in by_engine.items()}
        for name, by_engine in means.items()
    }
    found, yarn = means["found"]["llama.cpp"], means["yarn"]["llama.cpp"]
    difference = paired_difference(found, yarn, [SCORED] * len(found))
    return {"perplexities": perplexities, "found - yarn in llama.cpp": difference}


def _perplexity(scores: Sequence[float]) -> float:
    return math.exp(-math.fsum(scores) / len(scores))


STEPS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "search": run_search,
    "retrieval": run_retrieval,
    "engine": run_engine,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--out", type=Path, default=Path("bench/smollm2"))
    parser.add_argument("--target", type=int, default=16_384, help="on a GPU up to 65536")
    parser.add_argument("--candidates", type=int, default=24)
    documents_help = "for search, validation and held-out"
    parser.add_argument("--documents", type=int, nargs=3, default=[2, 2, 8], metavar="N", help=documents_help)
    parser.add_argument("--baselines", nargs="+", default=["none", "yarn"], help="closed forms to compare with")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    arguments = parser.parse_args()
    setting = Setting(
        arguments.out,
        arguments.target,
        arguments.candidates,
        tuple(arguments.documents),
        tuple(arguments.baselines),
    )
    setting.enter()
    for name in arguments.steps:
        file = Path(f"{name}.json")
        values = {key: value for key, value in vars(setting).items() if key != "out"}
        asked = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        if not file.exists() or read_json(file, RuntimeError)["asked"] != asked:
            write_json(file, {"asked": asked, **STEPS[name](setting)})
        print(json.dumps({name: read_json(file, RuntimeError)}, indent=1)[:4000], flush=True)


if __name__ == "__main__":
    main()
