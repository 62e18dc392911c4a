"""Builds the report of a job: one JSON document, from which the HTML page and the terminal table are made."""

import math
from typing import Any

from factor_search.factors_file import FactorsFile, FactorsModel, MeasuredPerplexity, Provenance, factors_file
from factor_search.files.canonical_json import finite
from factor_search.measure.evaluation import OK, PRUNED, Evaluation
from factor_search.measure.statistics import paired_difference, summarise
from factor_search.methods import untouched
from factor_search.report.front import front
from factor_search.search.selection import JobResult
from factor_search.search.short_texts import DOCUMENTS, length_of
from factor_search.spec import MEASURES, NeedleSpec
from factor_search.text.needle import spread_depths
from factor_search.text.samples import PARTS
from factor_search.version import versions as versions

SCHEMA = "factor-search/report@1"
DIFFERENCE = ("difference", "difference_standard_error")
"""Keys of a paired difference."""
NOISE = 2.0
"""Standard errors below which a difference is called none."""
FOUND = "found"
"""The name under which reports show the winner, whatever its name in the search."""
ENDINGS = {
    "strategy": "ended by the strategy, which had no more candidates to propose",
    "candidates": "ended by the budget of {limit:,} candidates",
    "tokens": "ended by the budget of {limit:,} tokens",
    "seconds": "ended by the budget of {limit:,} seconds of evaluation",
    "no_improvement": "ended by no_improvement: the last {limit:,} candidates brought no improvement beyond the noise",
    "interrupt": "ended by an interruption",
}
"""Why a search ended, in words, by ``ended_by``."""


def build_factors_file(result: JobResult) -> FactorsFile:
    """Build the factors file of the winner, or of the best candidate so far if the result is partial.

    Its perplexities are always those of plain text; they are null where the objective did not measure them.
    """
    spec, state, form = result.problem.spec, result.state, result.problem.space.form
    factors = result.winning_factors
    plain = spec.objective.kind == "perplexity"
    on_search = state.candidates.get(factors) if plain else None  # the file holds perplexities of plain text only
    held_out = result.held_out if plain else result.held_out_text
    baselines = {name: _perplexity(e) for name, e in held_out.items() if name in result.methods}
    return factors_file(
        factors,
        FactorsModel.of(spec.model.id, spec.model.revision, result.problem.geometry),
        spec.target_length,
        MeasuredPerplexity(
            search=_perplexity(on_search) if on_search is not None and on_search.outcome == OK else None,
            validation=_perplexity(result.validation.get(result.winner)) if plain else None,
            held_out=_perplexity(held_out.get(result.winner)),
            held_out_baselines={name: value for name, value in baselines.items() if value is not None},
        ),
        Provenance(
            job=spec.name,
            strategy=spec.strategy.kind,
            seed=spec.seed,
            candidates=len(state.candidates),
            tokens_evaluated=state.tokens,
            data_sha256=result.samples.sha256,
            versions=versions(),
        ),
        form=None if form is None else form.as_json(factors),
    )


def build_report(result: JobResult) -> dict[str, Any]:
    """Build the report: everything measured, with its uncertainty."""
    spec, geometry, state = result.problem.spec, result.problem.geometry, result.state
    assert state.best is not None
    parts = [getattr(result.samples, part) for part in PARTS]
    return {
        "schema": SCHEMA,
        "name": spec.name,
        "status": "interrupted" if result.interrupted else "finished",
        "spec": spec.model_dump(mode="json", exclude={"trackers", "webhooks"}),
        "objective": _objective(result),
        "model": {
            **FactorsModel.of(spec.model.id, spec.model.revision, geometry).model_dump(mode="json"),
            "wavelengths": geometry.wavelengths,
            "critical_dimension": geometry.critical_dimension,
        },
        "documents": {part.part: [sample.source for sample in part.samples] for part in parts},
        "measured_on": _measured_on(result),
        "measured_with": dict(result.identity) or None,
        "search": {
            "ended_by": state.ended_by,
            "candidates": len(state.candidates),
            "evaluations": len(state.evaluations),
            "tokens": state.tokens,
            "seconds": state.seconds,
            "generations": state.generations,
            "perplexities": [_perplexity(evaluation) for evaluation in state.evaluations],
            "documents": [len(evaluation.losses) for evaluation in state.evaluations],
            "pruned": sum(evaluation.outcome == PRUNED for evaluation in state.evaluations),
            "best_perplexity": _perplexity(state.best),
            "best_documents": len(state.best.losses),
        },
        "factors": result.winning_factors.as_json(),
        "winner": result.winner or None,
        "results": [_row(result, name) for name in [result.winner, *_others(result)] if name],
        "comparison": _comparison(result),
        "short_context": _short_context(result),
        "divergence": {"length": length_of(result.problem), "documents": min(DOCUMENTS, len(parts[2].samples))},
        "front": front(state, geometry.original_length),
        "closed_forms": {name: factors.as_json() for name, factors in result.problem.forms.items()},
        "estimate": result.estimate,
        "taken": _taken(result),
        "versions": versions(),
    }


def _taken(result: JobResult) -> dict[str, Any]:
    """What the job cost: with stored results, as if each had been computed for it; but not the time in all."""
    parts = [result.validation, result.held_out, result.held_out_text, result.divergence]
    measured = [evaluation for part in parts for evaluation in part.values()]
    measured += result.windows + ([] if result.unlimited is None else [result.unlimited])
    return {
        "seconds": result.seconds,
        "tokens": result.state.tokens + sum(sum(one.tokens) for one in measured),
        "device_seconds": result.state.seconds + math.fsum(one.seconds for one in measured),
        "peak_memory": result.peak_memory,
        "continued": result.continued,
    }


def _measured_on(result: JobResult) -> list[dict[str, Any]]:
    """Describe the plain text of the held-out documents by their tokens, so that others can find the same ones."""
    samples = result.samples.held_out_text or result.samples.held_out
    return [{"source": one.source, "sha256": one.address, "tokens": len(one.tokens)} for one in samples.samples]


def _short_context(result: JobResult) -> dict[str, Any] | None:
    """Compare the winner with the untouched model on the first tokens of the held-out documents, up to the original
    length; None where that was not measured (sliding windows, or a scaling of the model that depends on the length)."""
    geometry = result.problem.geometry
    length = geometry.original_length
    as_it_is = untouched(geometry)
    text = result.held_out_text or result.held_out
    same = [name for name, factors in result.methods.items() if factors == as_it_is and name in text]
    if not result.winner or not same:
        return None
    losses, reference = (text[name].losses_at.get(length) for name in (result.winner, same[0]))
    if not losses or not reference:
        return None
    tokens = [length - 1] * len(losses)
    mean, error = paired_difference(losses, reference, tokens)
    return {
        "length": length,
        "untouched": same[0],
        "perplexity": finite(summarise(losses, tokens).perplexity),
        "untouched_perplexity": finite(summarise(reference, tokens).perplexity),
        "difference": mean,
        "difference_standard_error": finite(error),
        **_limit(result),
    }


def _limit(result: JobResult) -> dict[str, Any]:
    """Whether the winner holds the limit on short texts, if there is one, and what it costs in windows of the held-out
    documents; null where a loss there is not known."""
    limit, short = result.problem.spec.short_window, result.short
    if limit is None:
        return {}
    losses, reference = (short.get(name) for name in (result.winner, result.problem.untouched[0]))
    found: dict[str, Any] = {"at_most": limit.at_most, "holds": None, "windows": None, "price": _price(result)}
    if not losses or not reference:
        return found
    mean, error = paired_difference(losses, reference, [1] * len(losses))
    windows = {"difference": mean, "difference_standard_error": finite(error), "documents": len(losses)}
    return found | {"holds": mean <= limit.at_most, "windows": windows}


def _price(result: JobResult) -> dict[str, Any] | None:
    """What the limit costs at the target length: the winner's loss minus that of the best candidate without a limit."""
    winner, best = result.held_out[result.winner], result.unlimited
    if best is None or best.outcome != OK or winner.outcome != OK:
        return None
    mean, error = paired_difference(winner.losses, best.losses, winner.tokens)
    return {
        "difference": mean,
        "difference_standard_error": finite(error),
        "perplexity": _perplexity(best),
        "factors": best.factors.as_json(),
    }


def _objective(result: JobResult) -> dict[str, Any]:
    """Describe the objective: what it measures, and for needles the depth in each sample."""
    objective = result.problem.spec.objective
    described: dict[str, Any] = {"kind": objective.kind, "measures": MEASURES[objective.kind]}
    if isinstance(objective, NeedleSpec):
        parts = [getattr(result.samples, part) for part in PARTS]
        described["depths"] = {part.part: spread_depths(len(part.samples)) for part in parts}
    return described


def measures(report: dict[str, Any]) -> str:
    """Name what a report measures; reports written before objectives existed measure perplexity."""
    return str(report.get("objective", {}).get("measures", MEASURES["perplexity"]))


def columns(report: dict[str, Any]) -> dict[str, str]:
    """Return the column titles of the table of results, by the key of a row."""
    shown = {"validation": "validation", "held_out": "held-out", "standard_error": "std. error"}
    if "text_perplexity" in report["results"][0]:
        shown |= {"text_perplexity": "plain text", "text_standard_error": "std. error"}
    if "divergence" in report["results"][0]:
        shown |= {"divergence": "short KL"}
    return shown


def _others(result: JobResult) -> list[str]:
    """List the closed forms, the best on held-out documents first."""
    names = [name for name in result.held_out if name != result.winner]
    return sorted(names, key=lambda name: result.held_out[name].loss)


def _row(result: JobResult, name: str) -> dict[str, Any]:
    """Build one row of the table: a closed form or the winner."""
    evaluation, winner = result.held_out[name], result.held_out[result.winner]
    row: dict[str, Any] = {
        "name": FOUND if name == result.winner else name,
        "is": name,
        "validation": _perplexity(result.validation[name]),
        "held_out": _perplexity(evaluation),
        "standard_error": finite(evaluation.summary.standard_error) if evaluation.outcome == OK else None,
        "outcome": evaluation.outcome,
        "documents": len(evaluation.losses),
        "tokens": sum(evaluation.tokens),
        "losses": list(evaluation.losses),
        "perplexity_at": {
            str(length): finite(summarise(losses, [length - 1] * len(losses)).perplexity)
            for length, losses in evaluation.losses_at.items()
        },
        "difference": None,
        "difference_standard_error": None,
        **_divergence(result, name),
    }
    if (text := result.held_out_text.get(name)) is not None:
        row["text_perplexity"] = _perplexity(text)
        row["text_standard_error"] = finite(text.summary.standard_error) if text.outcome == OK else None
    if name != result.winner and evaluation.outcome == winner.outcome == OK:
        mean, error = paired_difference(evaluation.losses, winner.losses, winner.tokens)
        row |= {"difference": mean, "difference_standard_error": finite(error)}
    return row


def _divergence(result: JobResult, name: str) -> dict[str, Any]:
    """Divergence from the untouched model in short texts, nats per token; null where it was not measured."""
    if result.held_out[name].factors == untouched(result.problem.geometry):
        return {"divergence": 0.0, "divergence_standard_error": None}
    evaluation = result.divergence.get(name)
    if evaluation is None or evaluation.outcome != OK:
        return {"divergence": None, "divergence_standard_error": None}
    mean, error = paired_difference(evaluation.losses, [0.0] * len(evaluation.losses), evaluation.tokens)
    return {"divergence": mean, "divergence_standard_error": finite(error)}


def _comparison(result: JobResult) -> dict[str, Any] | None:
    """Compare the winner with the closed form that is best on the held-out documents."""
    others = _others(result)
    if not result.winner or not others:
        return None
    row = _row(result, others[0])
    mean, error = row["difference"], row["difference_standard_error"]
    return {
        "best_closed_form": others[0],
        "difference": mean,
        "standard_error": error,
        "standard_errors": mean / error if mean is not None and error else None,
    }


def ending(report: dict[str, Any]) -> str:
    """Say in words why the search ended."""
    ended_by = report["search"]["ended_by"]
    return ENDINGS[ended_by].format(limit=report["spec"]["budget"].get(ended_by))


def _perplexity(evaluation: Evaluation | None) -> float | None:
    """Return the perplexity over the documents evaluated; None unless the outcome is ok or pruned."""
    if evaluation is None or evaluation.outcome not in (OK, PRUNED):
        return None
    return finite(evaluation.summary.perplexity)


def table(report: dict[str, Any]) -> str:
    """Format the result for a terminal."""
    if not report["results"]:
        made = report["search"]
        on = f"{made['best_documents']} search document{'s' * (made['best_documents'] != 1)}"
        return f"interrupted after {made['candidates']} candidates; best so far {made['best_perplexity']:.4f} on {on}"
    shown = columns(report)
    titles = "".join(f"{title:>12}" for title in shown.values())
    width = max(14, *(len(row["name"]) + 1 for row in report["results"]))
    lines = [f"{'':{width}}{titles}{'vs found (nats, paired)':>28}"]
    if "text_perplexity" in shown:
        lines.insert(0, f"{measures(report)}, and perplexity of the plain text of the held-out documents")
    for row in report["results"]:
        difference = ""
        if row["difference"] is not None:
            error = row["difference_standard_error"]
            difference = f"{row['difference']:+.4f}" + (f" ± {error:.4f}" if error is not None else "")
        cells = [number(row[key]) for key in shown]
        lines.append(f"{row['name']:{width}}" + "".join(f"{cell:>12}" for cell in cells) + f"{difference:>28}")
    comparison = report["comparison"]
    if comparison and comparison["standard_errors"] is not None:
        lines.append(
            f"found against {comparison['best_closed_form']}, the best other closed form on held-out documents: "
            f"{comparison['standard_errors']:+.1f} standard errors of the paired difference"
            + (", which is no difference beyond the noise" if abs(comparison["standard_errors"]) < NOISE else "")
        )
    if report["winner"] and not report["winner"].startswith("found"):
        among = " of those within the limit on short texts" if report["spec"].get("short_window") else ""
        than = f"was better than {report['winner']} on the validation documents"
        lines.append(f"no candidate{among} {than}: it is reported as found")
    lines += [said for said in (limit_of_short_texts(report), meaning_of_divergence(report)) if said]
    lines.append(f"search of {report['search']['candidates']:,} candidates, {ending(report)}")
    return "\n".join(lines)


def limit_of_short_texts(report: dict[str, Any]) -> str:
    """Say whether the winner holds the limit of the search on short texts; empty if there is none."""
    short = report.get("short_context") or {}
    if short.get("at_most") is None:
        return ""
    if short["holds"] is None:
        return f"whether found holds the limit of {short['at_most']:g} on short texts is not known"
    measured = short.get("windows")
    where = f"on the first {short['length']:,} tokens of"  # in reports of earlier versions
    if measured is not None:
        where = f"in windows of {short['length']:,} tokens of"
    mean, error = ((short if measured is None else measured)[key] for key in DIFFERENCE)
    costs = f"{mean:+.4f}" + (f" ± {error:.4f}" if error is not None else "")
    holds = "within" if short["holds"] else "BEYOND"
    if short["holds"] and mean + (error or 0.0) > short["at_most"]:
        holds = "within, but not by a standard error,"
    return (
        f"{where} the held-out documents, found costs {costs} nats per token more "
        f"than the untouched model, {holds} the limit of {short['at_most']:g}" + _paid(short.get("price"))
    )


def _paid(price: dict[str, Any] | None) -> str:
    if price is None:
        return ""
    mean, error = (price[key] for key in DIFFERENCE)
    paid = f"{mean:+.4f}" + (f" ± {error:.4f}" if error is not None else "")
    return f"; at the target length the limit costs {paid} nats per token, against the best candidate without it"


def meaning_of_divergence(report: dict[str, Any]) -> str:
    """Say what the divergences are of; empty for reports of earlier versions."""
    measured = report.get("divergence")
    if measured is None:
        return ""
    return (
        f"short KL: divergence of the predictions from the untouched model's, nats per token, on the first "
        f"{measured['length']:,} tokens of {measured['documents']} held-out documents"
    )


def number(value: float | None) -> str:
    """Format a number, or a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.4f}" if value < 1e5 else f"{value:.3g}"
