"""Writes the folder of a publication: factors, their exports, plots, the model card and ``reproduce.json``."""

import hashlib
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from api.publishing.card import FACTORS, PLOTS, THIS_FOLDER, YOUR_MODEL, Card, Loading, license_of
from api.publishing.claims import NAME, claims_of, read_claims
from api.publishing.privacy import JOB, check_nothing_private, public_method, public_model, public_spec, without_origin
from api.publishing.results import Results
from factor_search.errors import ExportError, OutputError
from factor_search.export.contract import Engine, Exported, Source
from factor_search.export.registry import ENGINES, expressible
from factor_search.factors_file import FactorsFile
from factor_search.files.atomic import cannot_write, move_folder, partial_folder, write_text
from factor_search.files.gguf import is_gguf
from factor_search.files.json_documents import read_json, write_json
from factor_search.model.checkpoint_files import is_local
from factor_search.spec import ModelSpec
from factor_search.visible import visible

CARD = "README.md"
EXPORTS = "exports"
SMALL = 2**24
"""Bytes of a file whose hash is kept, to notice what was changed by hand."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What is asked for."""

    results: Results
    model: ModelSpec
    """Where the model is on this machine, or its name on the hub."""
    base_model: str | None = None
    """The model's name on the hub, if ``model`` is a local copy of it."""
    license: str | None = None
    whole: bool = False
    """Whether the patched checkpoint or GGUF file is written as well."""
    repo: str | None = None
    hide_names: bool = False

    @property
    def base(self) -> str | None:
        """The model's name on the hub, if it is known."""
        return self.base_model or (None if is_local(self.results.spec.model.id) else self.results.spec.model.id)


def publish(asked: Publication, out: Path) -> list[Path]:
    """Write the folder, whole or not at all; one that was published before is replaced.

    Returns:
        The files written.

    Raises:
        OutputError: ``out`` holds something else, or files that were changed by hand; a file would name a path of this
            machine; or a file cannot be written.
        ExportError: ``asked.whole``, and the model cannot be written with the factors.
        ModelError: the model cannot be read.
    """
    try:
        _check_own(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(out) as partial:
            _fill(asked, partial)
            move_folder(partial, out)
    except OSError as error:
        raise cannot_write(out, error) from None
    return sorted(item for item in out.rglob("*") if item.is_file())


def _check_own(out: Path) -> None:
    """Refuse to replace a folder unless an earlier publication is all that is in it.

    Raises:
        OutputError: names what is in the way.
    """
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / NAME).is_file()):
        raise OutputError(f"{out} holds something else: choose another --out")
    if not (out / NAME).is_file():
        return
    files = read_claims(out / NAME).files
    for item in sorted(out.rglob("*")):
        name = item.relative_to(out).as_posix()
        if not item.is_file() or name == NAME:
            continue
        if name not in files or (files[name] is not None and files[name] != _hash(item)):
            did = "was changed" if name in files else "was added"
            raise OutputError(f"{item} {did} since it was published: move it away, or choose another --out")


def _fill(asked: Publication, folder: Path) -> None:
    results, spec = asked.results, asked.results.spec
    model = public_model(spec, asked.base)
    public = public_spec(spec, results.report.measured_with, model, hide=asked.hide_names)
    factors = _public_factors(results, model, public.model.revision)
    source = Source(factors, asked.model)
    loading, refused = _exports(asked, source, folder)
    factors.write(folder / FACTORS)
    plots = _plots(results, folder)
    claims = claims_of(results, public, factors.as_json()["sha256"], hide=asked.hide_names)
    found = {"license": asked.license} if asked.license else license_of(asked.model.id)
    if not found and asked.base is not None:
        found = license_of(asked.base)
    library = "gguf" if asked.whole and is_gguf(asked.model.id) else "transformers"
    card = Card(
        results=results,
        claims=claims,
        base_model=asked.base,
        license=found,
        whole=asked.whole,
        library=library if loading else "factor-search",
        loading=[*loading, _in_python(asked, model)],
        refused=refused,
        plots=plots,
        repo=asked.repo,
    )
    write_text(folder / CARD, card.text())
    told = [name for name in (model, asked.base_model, asked.repo) if name is not None]
    check_nothing_private(folder, spec, told)
    files = {item.relative_to(folder).as_posix(): _hash(item) for item in sorted(folder.rglob("*")) if item.is_file()}
    write_json(folder / NAME, claims.model_copy(update={"files": files}).as_json())
    check_nothing_private(folder, spec, told)


def _public_factors(results: Results, model: str, revision: str | None) -> FactorsFile:
    """The factors file without the path of the model, the name of the job and names that a user gave."""
    file, known = results.factors, results.report.closed_forms
    named = file.model.model_copy(update={"id": model, "revision": revision or file.model.revision})
    baselines = {public_method(name, known): value for name, value in file.perplexity.held_out_baselines.items()}
    perplexity = file.perplexity.model_copy(update={"held_out_baselines": baselines})
    provenance = file.provenance and file.provenance.model_copy(update={"job": JOB})
    return file.model_copy(update={"model": named, "perplexity": perplexity, "provenance": provenance})


def _plots(results: Results, folder: Path) -> list[str]:
    from factor_search.report.page import picture
    from factor_search.report.plots import draw_factors, draw_lengths, draw_search

    draws = {"lengths.png": draw_lengths, "factors.png": draw_factors, "search.png": draw_search}
    (folder / "plots").mkdir()
    drawn = []
    for name in PLOTS:
        if name != "lengths.png" or any(row["perplexity_at"] for row in results.plotted["results"]):
            (folder / "plots" / name).write_bytes(picture(draws[name], results.plotted, "png"))
            drawn.append(name)
    return drawn


def _exports(asked: Publication, source: Source, folder: Path) -> tuple[list[Loading], list[str]]:
    """Write what engines read; the one for transformers, and a whole model, at the top of the folder.

    Returns:
        How each engine loads it, and the reasons of those that cannot.
    """
    loading, refused = [], []
    public = partial(_public_text, asked, source.file.model.id, folder)
    if asked.whole:
        loading.append(_whole(asked, source, folder))
    for engine in ENGINES.values():
        if engine.document_name is None or (asked.whole and engine.name == "huggingface"):
            continue
        try:
            adapted, _ = expressible(engine, source)
            at_top = engine.name == "huggingface"
            file = folder / "config.json" if at_top else folder / EXPORTS / f"{engine.name}.json"
            if not at_top:
                file.parent.mkdir(exist_ok=True)
            exported = engine.write(adapted, file)
        except ExportError as error:
            refused.append(f"{engine.title}: {public(str(error).partition(': --nearest')[0])}")
            continue
        for written in exported.files:
            without_origin(written, source.file.model.id)
        loading.append(_loading(asked, engine, exported, public))
    return loading, refused


def _whole(asked: Publication, source: Source, folder: Path) -> Loading:
    """Write the whole model with the factors.

    Raises:
        ExportError: it cannot express them; says what to do.
    """
    from factor_search.export.registry import export

    where = asked.repo or THIS_FOLDER
    if is_gguf(asked.model.id):
        file = folder / f"{Path(asked.model.id).stem}-{source.file.target_length}.gguf"
        exported = export("gguf", source, file)
        line = f"llama-cli -m {shlex.quote(file.name)} -c {source.file.target_length}"
        return Loading(title="llama.cpp", lines=[line], notes=list(exported.notes))
    whole = folder / "whole"
    export("huggingface", source, whole)
    for item in whole.iterdir():
        item.rename(folder / item.name)
    whole.rmdir()
    without_origin(folder / "config.json", source.file.model.id)
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    lines += [f"model = AutoModelForCausalLM.from_pretrained({where!r})"]
    lines += [f"tokenizer = AutoTokenizer.from_pretrained({where!r})"]
    return Loading(title=ENGINES["huggingface"].title, lines=lines, language="python")


def _loading(asked: Publication, engine: Engine, exported: Exported, public: Callable[[str], str]) -> Loading:
    notes = [public(note) for note in exported.notes]
    if engine.name == "huggingface":
        where, base = asked.repo or THIS_FOLDER, asked.base or YOUR_MODEL
        lines = [
            "from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer",
            "",
            f"config = AutoConfig.from_pretrained({where!r})",
            f"model = AutoModelForCausalLM.from_pretrained({base!r}, config=config)",
            f"tokenizer = AutoTokenizer.from_pretrained({base!r})",
        ]
        return Loading(title=engine.title, lines=lines, language="python", notes=notes)
    if exported.command is not None:  # the overrides come from their file, since they would fill the screen
        document = shlex.quote(json.dumps(read_json(exported.loaded, OutputError, own=True), separators=(",", ":")))
        line = exported.command.replace(document, f'"$(cat {EXPORTS}/{exported.loaded.name})"')
        return Loading(title=engine.title, lines=[public(line)], notes=notes)
    base, length = asked.base or YOUR_MODEL, asked.results.factors.target_length
    export = f"factor-search export --factors {FACTORS} --model {shlex.quote(base)} --format {engine.name}"
    load = engine.load_command(ModelSpec(id=base), length, Path("extended-model"))
    lines = [f"{export} --out extended-model", load]
    notes.append(f"`{EXPORTS}/{exported.loaded.name}` takes the place of the model's `{engine.document_name}`.")
    return Loading(title=engine.title, lines=lines, notes=notes)


def _in_python(asked: Publication, model: str) -> Loading:
    base = asked.base or YOUR_MODEL
    lines = [
        "from transformers import AutoModelForCausalLM",
        "",
        "import factor_search as fs",
        "",
        f"model = AutoModelForCausalLM.from_pretrained({base!r})",
        f'with fs.apply(model, fs.load_factors("{FACTORS}")):',
        "    model.generate(...)",
    ]
    others = (
        f"Other engines: `factor-search export --factors {FACTORS} --model {base} --format gguf --out extended.gguf`"
    )
    note = "Initial tokens are in force as well." if asked.results.factors.initial_tokens else ""
    return Loading(title="Any transformers model in Python", lines=lines, language="python", notes=[note, others])


def _public_text(asked: Publication, model: str, folder: Path, text: str) -> str:
    """A text of an exporter with public names in place of paths."""
    for private, shown in ((str(folder), "."), (asked.model.id, asked.base or YOUR_MODEL)):
        for spelling in {shlex.quote(private), private}:
            text = (
                text.replace(spelling, shown) if "/" in private else re.sub(rf"\b{re.escape(spelling)}\b", shown, text)
            )
    return visible(text)


def _hash(file: Path) -> str | None:
    if file.stat().st_size > SMALL:
        return None
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
