"""The model card of a publication: metadata for the hub, the figures with their uncertainty, and how to load it."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.publishing.claims import NAME, SHORT, Claims
from api.publishing.hub import without_warnings
from api.publishing.privacy import public_method
from api.publishing.results import Results
from factor_search.files.gguf import is_gguf
from factor_search.files.hub import asking_hub
from factor_search.files.reading import reading_rules
from factor_search.model.checkpoint_files import is_local
from factor_search.report.document import number
from factor_search.spec import MEASURES

TAGS = ["factor-search", "longrope", "rope", "rope-scaling", "long-context"]
FACTORS = "factors.json"
THIS_FOLDER, YOUR_MODEL, YOUR_DOCUMENTS = "THIS_FOLDER", "YOUR_MODEL", "YOUR_DOCUMENTS"
"""Stand in commands for what readers have elsewhere; none could be a path of the search, which no card may name."""
PLOTS = {
    "lengths.png": "Perplexity of the first n tokens of the held-out documents",
    "factors.png": "Rescale factors against the closed forms; the dotted line is the scale",
    "search.png": "Every candidate in the order evaluated, and the best so far",
}


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How an engine loads what was published."""

    title: str
    """Of the engine."""
    lines: Sequence[str]
    """Commands, or Python if ``language`` says so."""
    language: str = "sh"
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the card says beside the figures."""

    results: Results
    claims: Claims
    base_model: str | None
    """On the hub, if it is known."""
    license: dict[str, str]
    """``license``, and perhaps ``license_name`` and ``license_link``; empty if it is not known."""
    whole: bool
    """Whether weights are published."""
    library: str
    loading: Sequence[Loading]
    refused: Sequence[str]
    """Engines that cannot express the factors, with the reason, one sentence each."""
    plots: Sequence[str]
    repo: str | None
    """Its repository on the hub."""

    def text(self) -> str:
        """The content of ``README.md``."""
        from huggingface_hub import ModelCardData

        more: dict[str, Any] = dict(self.license)
        if self.base_model is not None:
            more["base_model_relation"] = "finetune" if self.whole else "adapter"
        data = ModelCardData(
            base_model=self.base_model,
            library_name=self.library,
            tags=TAGS,
            pipeline_tag="text-generation",
            **more,
        )
        sections = [self._head(), self._figures(), self._pictures(), self._loading(), self._provenance()]
        return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(section for section in sections if section)

    def _head(self) -> str:
        file, spec = self.results.factors, self.claims.spec
        model = _code(spec.model.id)
        if self.base_model is not None:
            model = f"[{self.base_model}](https://huggingface.co/{self.base_model})"
        return (
            f"# {_plain(spec.model.id.rpartition('/')[2])}, {file.model.original_length:,} to {file.target_length:,} "
            "tokens\n\n"
            f"Non-uniform RoPE rescale factors (LongRoPE, [2402.13753](https://arxiv.org/abs/2402.13753)) that extend "
            f"the context window of {model} by a factor of {file.scale:g}. They were searched with factor-search; no "
            f"weight was changed. They belong to this model alone ({file.model.architecture}, RoPE base "
            f"{file.model.rope_theta:g}, {len(file.rescale_factors)} rotary pairs; initial tokens "
            f"{file.initial_tokens}, attention factor {file.attention_factor:.6g}).\n"
        )

    def _figures(self) -> str:
        report, spec = self.results.report, self.claims.spec
        measures = MEASURES[spec.objective.kind]
        plain = any(row.text_perplexity is not None for row in report.results)
        titles = ["", f"{measures} ± standard error", *(["plain text"] if plain else []), "minus found (nats, paired)"]
        rows = []
        for row in report.results:
            cells = [public_method(row.name, report.closed_forms), _with_error(row.held_out, row.standard_error)]
            cells += [_with_error(row.text_perplexity, row.text_standard_error)] if plain else []
            rows.append([*cells, _signed(row.difference, row.difference_standard_error)])
        found = report.results[0]
        lines = [
            f"## {measures[0].upper()}{measures[1:]} at {spec.target_length:,} tokens\n",
            _table(titles, rows),
            f"\nHeld-out: {found.documents} documents, {found.tokens:,} scored tokens, which neither the search nor "
            "the choice of the winner used. Differences are in nats per token, paired over documents: above 0 is worse "
            "than found. Standard errors are over documents.",
        ]
        if not report.winner.startswith("found"):
            name = public_method(report.winner, report.closed_forms)
            lines.append(
                f"\nNo candidate was better than {name} on the validation documents: it is published as found."
            )
        return "\n".join([*lines, self._short_context(), ""])

    def _short_context(self) -> str:
        short = self.results.report.short_context
        if short is None or not any(figure.what == SHORT for figure in self.claims.figures):
            return "\nShort-context degradation was not measured by this search."
        before, after = number(short.untouched_perplexity), number(short.perplexity)
        difference = _signed(short.difference, short.difference_standard_error)
        return (
            f"\nShort-context degradation: {difference} nats per token on "
            f"the first {short.length:,} tokens of the same documents (perplexity {before} untouched, {after} with the "
            "factors)."
        )

    def _pictures(self) -> str:
        return "\n".join(f"![{PLOTS[name]}](plots/{name})\n" for name in self.plots)

    def _loading(self) -> str:
        parts = ["## How to load it\n"]
        for one in self.loading:
            block = "\n".join(one.lines)
            parts.append(f"**{one.title}**\n\n```{one.language}\n{block}\n```\n")
            parts += [f"{note}\n" for note in one.notes]
        if self.refused:
            parts += [
                "Engines whose formats cannot express these factors:\n",
                *(f"* {one}" for one in self.refused),
                "",
            ]
        return "\n".join(parts)

    def _provenance(self) -> str:
        report, claims = self.results.report, self.claims
        identity, provenance = claims.measured_with, self.results.factors.provenance
        rows = [
            ["strategy, seed", f"{claims.spec.strategy.kind}, {claims.spec.seed}"],
            ["candidates", f"{report.search.candidates:,}"],
            ["tokens evaluated in the search", f"{report.search.tokens:,}"],
            ["versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())],
            ["model", _code(identity["model"])],
            ["computed with", ", ".join(f"{key} {identity[key]}" for key in identity if key != "model")],
            ["documents", _code((provenance and provenance.data_sha256) or "unknown")],
        ]
        words = ["factor-search", "reproduce", self.repo or THIS_FOLDER]
        words += [] if self.base_model else ["--model", YOUR_MODEL]
        command = shlex.join(words) + ("" if claims.spec.data.dataset else f" --data {YOUR_DOCUMENTS}")
        return (
            f"## Provenance\n\n{_table(['', ''], rows)}\n\n"
            "The model and the documents are named by hashes (of files and of tokens). "
            f"[{NAME}]({NAME}) has the specification of the search, the hash of each held-out document, and every "
            "claimed figure with its tolerance. With the same documents, this measures the figures again:\n\n"
            f"```sh\n{command}\n```\n"
        )


def license_of(model: str) -> dict[str, str]:
    """The license in the card of a model, in its folder or on the hub; empty if it is not known."""
    from huggingface_hub import ModelCard

    local = is_local(model)
    if is_gguf(model) or not (local or reading_rules().hub):
        return {}
    try:
        with without_warnings(), asking_hub(model):
            data: dict[str, Any] = ModelCard.load(Path(model, "README.md") if local else model).data.to_dict()
    except Exception:  # a card of others may be anything, and the hub may be away
        return {}
    known = {key: data.get(key) for key in ("license", "license_name", "license_link")}
    return {key: value for key, value in known.items() if isinstance(value, str)}


def _with_error(value: float | None, error: float | None) -> str:
    return number(value) + (f" ± {error:.4f}" if value is not None and error is not None else "")


def _signed(value: float | None, error: float | None) -> str:
    return "" if value is None else f"{value:+.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text of others without what Markdown or HTML would take for its own."""
    return re.sub(r"[^\w. -]", "-", text)


def _code(text: str) -> str:
    """Text of others as code, of which Markdown and HTML take nothing for their own."""
    return f"`{text.replace('`', chr(39))}`"
