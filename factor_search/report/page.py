"""Renders a report as one self-contained HTML page: no script, no network, plots as inline SVG."""

import io
import json
from collections.abc import Callable
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING, Any

from factor_search.files.html import ON_PAPER
from factor_search.files.html import html_table as html_table  # of the reports of plans as well
from factor_search.report.document import columns, ending, limit_of_short_texts, meaning_of_divergence, measures, number
from factor_search.report.plots import draw_factors, draw_front, draw_lengths, draw_search

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;margin:1rem 0}
th,td{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child,.text{text-align:left}
tr.found td{font-weight:600;color:#B34700}svg{max-width:100%;height:auto}
table{display:block;overflow-x:auto}.big{font-size:1.15rem}
code{overflow-wrap:anywhere}details{margin:.5rem 0}figcaption{color:#555;font-size:.9rem}figure{margin:1rem 0}
"""


Drawing = Callable[["Axes", dict[str, Any]], None]


def render(report: dict[str, Any]) -> str:
    """Render the HTML page of a report (see :func:`factor_search.report.document.build_report`)."""
    model, spec = report["model"], report["spec"]
    scale = spec["target_length"] / model["original_length"]
    body = f"""
<h1>{escape(report["name"])}</h1>
<p>{escape(model["architecture"])} <code>{escape(model["id"])}</code>, {model["original_length"]} to
{spec["target_length"]} tokens (scale {scale:g}), {model["rotary_dim"] // 2} rotary pairs, base {model["rope_theta"]:g},
RoPE type {escape(model["base_rope_type"])}, critical dimension {model["critical_dimension"]}.</p>
{_headline(report)}{_results_table(report)}{_limit(report)}{_figures(report)}{_front(report)}
<h2>Factors</h2><p>initial tokens {report["factors"]["initial_tokens"]}, attention factor
{report["factors"]["attention_factor"]:.6g}</p>
<p><code>{escape(str(report["factors"]["rescale_factors"]))}</code></p>
<h2>Search</h2><p>{report["search"]["candidates"]} candidates{_early(report["search"])},
{report["search"]["tokens"]:,} {_kind_of_tokens(report)},
{report["search"]["seconds"]:.1f} s of evaluation, seed {spec["seed"]}, strategy {escape(spec["strategy"]["kind"])};
{escape(ending(report))}.{_warm_starts(spec)}</p>
{cost_table(report)}{_documents(report)}
<p>{escape(", ".join(f"{name} {version}" for name, version in report["versions"].items()))}</p>"""
    return page(f"factor-search: {report['name']}", body)


def summary(report: dict[str, Any]) -> str:
    """Render the headline, the table and the plots of a report, for a notebook with a light or a dark page."""
    plots = f'<div style="{ON_PAPER}">{_figures(report)}</div>'
    return f"<div>{_headline(report)}{_results_table(report)}{plots}</div>"


def drawing(report: dict[str, Any]) -> "Figure":
    """Draw the plots of a report, one below the other."""
    from matplotlib.figure import Figure

    plots = _plots(report)
    drawn = Figure(figsize=(8, 3.8 * len(plots)), layout="constrained")
    for axes, draw in zip(drawn.subplots(len(plots), squeeze=False)[:, 0], plots, strict=True):
        draw(axes, report)
    return drawn


def _plots(report: dict[str, Any]) -> dict[Drawing, str]:
    """The plots of a report, with their captions."""
    lengths = {draw_lengths: "Perplexity of the first n tokens of the held-out documents."}
    fronts = {draw_front: "What short texts pay for long ones, on search documents; report.json has the factors."}
    return {
        draw_factors: "Rescale factors against the closed forms. The dotted line is the scale.",
        **(lengths if any(row["perplexity_at"] for row in report["results"]) else {}),
        draw_search: _search_caption(report["search"]),
        **(fronts if len(report.get("front") or ()) > 1 else {}),
    }


def _figures(report: dict[str, Any]) -> str:
    return "".join(figure(draw, report, caption) for draw, caption in _plots(report).items())


def page(title: str, body: str) -> str:
    """Wrap HTML content into a complete page; the title is escaped."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>{body}</body></html>\n'
    )


def _search_caption(search: dict[str, Any]) -> str:
    caption = "Every candidate in the order evaluated, and the best so far."
    if search.get("pruned"):
        caption += " Open marks were stopped early, on fewer documents; they are not comparable with the others."
    return caption


def _limit(report: dict[str, Any]) -> str:
    said = _sentence(limit_of_short_texts(report))
    return f"<p>{said}</p>" if said else ""


def _sentence(said: str) -> str:
    return f" {escape(said[:1].upper() + said[1:])}." if said else ""


def _front(report: dict[str, Any]) -> str:
    """The points of the front as a table."""
    points = report.get("front") or []
    if len(points) < 2:
        return ""
    rows = [
        (str(place), number(point["perplexity"]), number(point["short_perplexity"]))
        for place, point in enumerate(points, start=1)
    ]
    titles = ("", "at the target length", "within the original length")
    made = html_table(titles, rows)
    return f"<details><summary>Candidates that none beats at both, on the search documents</summary>{made}</details>"


def _kind_of_tokens(report: dict[str, Any]) -> str:
    return "tokens" if measures(report) == "perplexity" else "answer tokens"


def _early(search: dict[str, Any]) -> str:
    """Count the evaluations, where candidates were stopped early and evaluated again."""
    if not search.get("pruned"):
        return ""
    return f" in {search['evaluations']} evaluations, {search['pruned']} of them stopped before the last document"


def _headline(report: dict[str, Any]) -> str:
    if report["status"] == "interrupted":
        return "<p class=big>Interrupted: a partial result. Run the same command again to continue.</p>"
    comparison = report["comparison"]
    found = report["results"][0]
    if found["held_out"] is None or comparison is None or comparison["difference"] is None:
        return ""
    text = f"Held-out {measures(report)} {found['held_out']:.4f}"
    if comparison["standard_errors"] is not None:
        direction = "better" if comparison["difference"] >= 0 else "worse"
        text += (
            f"; {abs(comparison['difference']):.4f} nats per token {direction} than {comparison['best_closed_form']}, "
            f"the best other closed form there: {abs(comparison['standard_errors']):.1f} standard errors of the paired "
            "difference"
        )
    if not report["winner"].startswith("found"):
        text += f". No candidate was better than {report['winner']} on the validation documents: it is reported"
    return f"<p class=big>{escape(text)}.</p>"


def _results_table(report: dict[str, Any]) -> str:
    if not report["results"]:
        return ""
    rows, shown = [], columns(report)
    for row in report["results"]:
        difference = "" if row["difference"] is None else f"{row['difference']:+.4f}"
        if row["difference_standard_error"] is not None:
            difference += f" ± {row['difference_standard_error']:.4f}"
        rows.append([row["name"], *(number(row[key]) for key in shown), difference])
    found, title = report["results"][0], measures(report)
    titles = ["", *(name.replace("std.", "standard") for name in shown.values()), "minus found (nats, paired)"]
    plain = " Plain text: perplexity of all tokens of the held-out documents, without needles." * (
        "text_perplexity" in shown
    )
    return (
        f"<h2>{title[0].upper()}{title[1:]} at {report['spec']['target_length']} tokens</h2>{html_table(titles, rows)}"
        f"<p>Held-out: {found['documents']} documents, {found['tokens']:,} tokens. Neither the search nor the choice "
        f"of the winner used them. Standard errors are over documents.{plain}"
        f"{_sentence(meaning_of_divergence(report))}</p>"
    )


def _warm_starts(spec: dict[str, Any]) -> str:
    asked = spec.get("warm_start", {})
    sources = [f"<code>{escape(known['source'])}</code>" for known in asked.get("factors", [])]
    if given := len(asked.get("rescale_factors", [])):
        sources.append(f"{given} given vector{'s' * (given > 1)}")
    return f" It started from the closed forms and {', '.join(sources)}." if sources else ""


def cost_table(report: dict[str, Any]) -> str:
    """Return what was estimated beside what it took, as HTML; empty for reports of earlier versions."""
    taken, estimate = report.get("taken"), report.get("estimate") or {}
    if not taken:
        return ""
    total, memory = estimate.get("total") or {}, estimate.get("memory") or {}
    rows = [
        ["time", shown(total.get("seconds"), "s"), shown(taken.get("seconds"), "s")],
        ["tokens", shown(total.get("tokens"), ""), shown(taken.get("tokens"), "")],
        ["time of devices", "-", shown(taken.get("device_seconds"), "s")],
        ["peak memory", shown(memory.get("peak"), "MiB"), shown(taken.get("peak_memory"), "MiB")],
    ]
    text = " Some evaluations are of an earlier run, whose time is left out." if taken.get("continued") else ""
    return f"<h2>Cost</h2>{html_table(['', 'estimated', 'taken'], rows)}<p>Tokens are those scored.{text}</p>"


def shown(value: float | None, unit: str) -> str:
    """Return an amount in seconds (``s``), bytes (``MiB``) or without a unit; a dash for None."""
    if value is None:
        return "-"
    if unit == "MiB":
        value /= 2**20
    return f"{value:,.1f} {unit}" if unit == "s" and value < 100 else f"{value:,.0f} {unit}".strip()


def _documents(report: dict[str, Any]) -> str:
    parts = []
    for part, sources in report["documents"].items():
        listed = "".join(f"<li><code>{escape(source)}</code></li>" for source in sources)
        parts.append(
            f"<details><summary>{len(sources)} {part.replace('_', '-')} documents</summary><ul>{listed}</ul></details>"
        )
    return "".join(parts)


def figure(draw: Drawing, report: dict[str, Any], caption: str) -> str:
    """Draw a plot as inline SVG with a caption.

    The page of a plan is written after each of its stages, so the figures of the stages before are remembered.
    """
    return f"<figure>{_svg(draw, json.dumps(report))}<figcaption>{escape(caption)}</figcaption></figure>"


@lru_cache(maxsize=64)
def _svg(draw: Drawing, report: str) -> str:
    svg = picture(draw, json.loads(report), "svg").decode()
    return svg[svg.index("<svg") :]


def picture(draw: Drawing, report: dict[str, Any], form: str) -> bytes:
    """Draw a plot as the content of a picture file.

    Args:
        draw: of :mod:`factor_search.report.plots`.
        report: what it draws.
        form: ``svg`` or ``png``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(8, 3.8), layout="constrained")
    draw(drawing.add_subplot(), report)
    stream = io.BytesIO()
    nameless = {"Date": None} if form == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "factor-search"}):
        drawing.savefig(stream, format=form, metadata=nameless, dpi=144)
    return stream.getvalue()
