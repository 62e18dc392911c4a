"""A plan's report as one self-contained page: no script, no network, plots as inline SVG."""

from collections.abc import Callable
from html import escape
from typing import Any

from factor_search.plan.report_plots import draw_losses, draw_searches
from factor_search.report.document import number
from factor_search.report.page import figure, page
from factor_search.report.plots import draw_ladder, draw_passkey


def render(report: dict[str, Any]) -> str:
    """The HTML page of a report (see :func:`factor_search.plan.report.plan_report`)."""
    plan = report["plan"]
    rows = "".join(
        f"<tr><td>{escape(stage['name'])}</td><td class=text>{escape(stage['summary'] or stage['status'])}</td></tr>"
        for stage in report["stages"]
    )
    body = f"""
<h1>{escape(report["name"])}</h1>
<p>Extension of <code>{escape(plan["model"]["id"])}</code> by stages; {escape(report["status"])}.</p>
<h2>What each stage gained</h2><table><tr><th>stage</th><th class=text>on held-out documents</th></tr>{rows}</table>
{"".join(f"<p>{escape(one['summary'])}.</p>" for one in report["comparisons"])}
{_searches(report)}{"".join(_section(stage) for stage in report["stages"] if stage["status"] == "finished")}
<p>Differences are paired over documents; what stands after ± is a standard error over documents.</p>
<p>{escape(", ".join(f"{name} {version}" for name, version in report["versions"].items()))}</p>"""
    return page(f"factor-search: {report['name']}", body)


def _searches(report: dict[str, Any]) -> str:
    found = [stage for stage in report["stages"] if "factors" in stage]
    if not found:
        return ""
    return figure(draw_searches, {"stages": found}, "Rescale factors that the searches found. Dotted lines are scales.")


def _section(stage: dict[str, Any]) -> str:
    if stage["kind"] not in _SECTIONS:
        return ""
    content = _SECTIONS[stage["kind"]](stage)
    return f"<h2>{escape(stage['name'])}</h2><p>{escape(stage['summary'])}.</p>{content}"


def _search(stage: dict[str, Any]) -> str:
    rows = [
        [
            row["name"],
            number(row["held_out"]),
            number(row["standard_error"]),
            number(row["difference"]),
            number(row["difference_standard_error"]),
        ]
        for row in stage["results"]
    ]
    titles = ["", f"{stage['objective']['measures']}, held-out", "±", "minus found (nats)", "±"]
    return _table(titles, rows)


def _finetune(stage: dict[str, Any]) -> str:
    rows = [
        [
            f"{row['length']:,} tokens",
            *(number(row[when] and row[when][key]) for when in ("before", "after") for key in _PERPLEXITY),
            number(row["difference"]),
            number(row["difference_standard_error"]),
        ]
        for row in stage["gain"]
    ]
    caption = (
        f"Loss of each of {len(stage['losses']):,} steps, {stage['tokens']:,} tokens in all, and its running mean."
    )
    titles = ["first", "before", "±", "after", "±", "gained (nats)", "±"]
    return figure(draw_losses, stage, caption) + _table(titles, rows)


def _evaluate(stage: dict[str, Any]) -> str:
    ladder, short = stage["ladder"], stage["short_window"]
    names = list(dict.fromkeys(rung["name"] for rung in ladder["rungs"]))
    by_place = {(rung["name"], rung["length"]): rung for rung in ladder["rungs"]}
    rungs = [[name, *(_rung(by_place[name, length]) for length in ladder["lengths"])] for name in names]
    parts = [
        figure(draw_ladder, ladder, "Perplexity by length, each a window of its own, with standard errors."),
        _table(["", *(f"{length:,}" for length in ladder["lengths"])], rungs),
        f"<p>Short texts, windows of {short['length']:,} tokens at the beginning of each document:</p>",
        _table(
            ["", "perplexity", "±", "minus original (nats)", "±"],
            [[row["name"], *(number(row.get(key)) for key in (*_PERPLEXITY, *_DIFFERENCE))] for row in short["rows"]],
        ),
    ]
    if stage["passkey"]:
        count = stage["passkey"]["cells"][0]["count"]
        caption = f"Share of passkeys found by length and depth, {count} documents each."
        parts += [figure(draw_passkey, stage["passkey"], caption), _passkeys(stage["passkey"])]
    if stage["harness"]:
        rows = [
            [task, metric, number(value)] for task, all_ in stage["harness"].items() for metric, value in all_.items()
        ]
        parts.append(_table(["lm-evaluation-harness", "", ""], rows))
    return "".join(parts)


def _passkeys(passkey: dict[str, Any]) -> str:
    """The heat map's figures with their standard errors."""
    cells = {(cell["length"], cell["depth"]): cell for cell in passkey["cells"]}
    rows = [
        [f"{length:,} tokens", *(_share(cells[length, depth]) for depth in passkey["depths"])]
        for length in passkey["lengths"]
    ]
    return _table(["", *(f"depth {depth:.0%}" for depth in passkey["depths"])], rows)


def _share(cell: dict[str, Any]) -> str:
    error = cell["standard_error"]
    return f"{cell['accuracy']:.0%}" + (f" ± {error:.0%}" if error is not None else "")


_PERPLEXITY = ("perplexity", "standard_error")
_DIFFERENCE = ("difference", "difference_standard_error")
_SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "search": _search,
    "readjust": _search,
    "finetune": _finetune,
    "evaluate": _evaluate,
}


def _rung(rung: dict[str, Any]) -> str:
    if rung["perplexity"] is None:
        return str(rung["outcome"])
    error = rung["standard_error"]
    return number(rung["perplexity"]) + (f" ± {number(error)}" if error is not None else "")


def _table(titles: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    lines = []
    for row in rows:
        kind = " class=found" if row[0] in ("found", "short") else ""
        lines.append(f"<tr{kind}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"
