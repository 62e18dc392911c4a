"""A plan's report as one self-contained page: no script, no network, plots as inline SVG."""

from html import escape
from typing import Any

from factor_search.plan.kinds import KINDS
from factor_search.plan.plots import draw_searches
from factor_search.report.page import figure, html_table, page, shown


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
{_searches(report)}{_costs(report)}
{"".join(_section(stage) for stage in report["stages"] if stage["status"] == "finished")}
<p>Differences are paired over documents; what stands after ± is a standard error over documents.</p>
<p>{escape(", ".join(f"{name} {version}" for name, version in report["versions"].items()))}</p>"""
    return page(f"factor-search: {report['name']}", body)


def _costs(report: dict[str, Any]) -> str:
    """What each stage took, beside what was estimated."""
    rows = []
    for stage in report["stages"]:
        taken, estimate = stage.get("taken"), stage.get("estimate") or {}
        if taken:
            expected = estimate.get("total") or {}, estimate.get("memory") or {}
            pairs = [(expected[0].get("seconds"), taken.get("seconds"), "s")]
            pairs += [(expected[0].get("tokens"), taken.get("tokens"), "")]
            pairs += [(expected[1].get("peak"), taken.get("peak_memory"), "MiB")]
            rows.append([stage["name"], *(shown(value, unit) for *both, unit in pairs for value in both)])
    titles = ["", "time: estimated", "taken", "tokens: estimated", "taken", "memory: estimated", "taken"]
    return f"<h2>Cost</h2>{html_table(titles, rows)}" if rows else ""


def _searches(report: dict[str, Any]) -> str:
    found = [stage for stage in report["stages"] if "factors" in stage]
    if not found:
        return ""
    return figure(draw_searches, {"stages": found}, "Rescale factors that the searches found. Dotted lines are scales.")


def _section(stage: dict[str, Any]) -> str:
    content = KINDS[stage["kind"]].section(stage)
    if not content:
        return ""
    return f"<h2>{escape(stage['name'])}</h2><p>{escape(stage['summary'])}.</p>{content}"
