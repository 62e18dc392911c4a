"""The section of an evaluating stage in the page of a plan."""

from collections.abc import Callable
from typing import Any

from factor_search.report.document import number
from factor_search.report.page import figure, html_table
from factor_search.report.plots import draw_ladder, draw_passkey

_PERPLEXITY = ("perplexity", "standard_error")
_DIFFERENCE = ("difference", "difference_standard_error")


def evaluation_section(stage: dict[str, Any]) -> str:
    """Tables and plots of the ladder, short contexts, passkeys and the harness."""
    ladder, short = stage["ladder"], stage["short_window"]
    names = list(dict.fromkeys(rung["name"] for rung in ladder["rungs"]))
    by_place = {(rung["name"], rung["length"]): rung for rung in ladder["rungs"]}
    rungs = [[name, *(_rung(by_place[name, length]) for length in ladder["lengths"])] for name in names]
    parts = [
        figure(draw_ladder, ladder, "Perplexity by length, each a window of its own, with standard errors."),
        html_table(["", *(f"{length:,}" for length in ladder["lengths"])], rungs),
        f"<p>Short texts, windows of {short['length']:,} tokens at the beginning of each document:</p>",
        html_table(
            ["", "perplexity", "±", "minus original (nats)", "±"],
            [[row["name"], *(number(row.get(key)) for key in (*_PERPLEXITY, *_DIFFERENCE))] for row in short["rows"]],
        ),
    ]
    if stage["passkey"]:
        count = stage["passkey"]["cells"][0]["count"]
        caption = f"Share of passkeys found by length and depth, {count} documents each."
        parts += [figure(draw_passkey, stage["passkey"], caption), _passkeys(stage["passkey"])]
    if stage.get("ruler"):
        parts += ["<p>Share of facts found in the tasks of RULER:</p>", _ruler(stage["ruler"])]
    if stage.get("key_tokens"):
        chosen = stage["key_tokens"]
        parts += [f"<p>{chosen['tokens']:,} key tokens in {chosen['documents']} documents:</p>", _key_tokens(chosen)]
    if stage["harness"]:
        rows = [
            [task, metric, number(value)] for task, all_ in stage["harness"].items() for metric, value in all_.items()
        ]
        parts.append(html_table(["lm-evaluation-harness", "", ""], rows))
    return "".join(parts)


def _passkeys(passkey: dict[str, Any]) -> str:
    """The heat map's figures with their standard errors."""
    cells = {(cell["length"], cell["depth"]): cell for cell in passkey["cells"]}
    rows = [
        [f"{length:,} tokens", *(_share(cells[length, depth]) for depth in passkey["depths"])]
        for length in passkey["lengths"]
    ]
    return html_table(["", *(f"depth {depth:.0%}" for depth in passkey["depths"])], rows)


def _ruler(ruler: dict[str, Any]) -> str:
    """A row for each task and depth, a column for each length; over all depths where there are several."""
    scores = {(one["task"], one["depth"], one["length"]): one for one in ruler["scores"]}
    rows = []
    for task, depth in dict.fromkeys((task, depth) for task, depth, _ in sorted(scores, key=_by_task(ruler["tasks"]))):
        name = task if depth is None else f"{task}, depth {depth:.0%}"
        cells = (scores.get((task, depth, length)) for length in ruler["lengths"])
        rows.append([name, *("-" if cell is None else _share(cell) for cell in cells)])
    return html_table(["", *(f"{length:,} tokens" for length in ruler["lengths"])], rows)


def _by_task(tasks: list[str]) -> Callable[[tuple[str, float | None, int]], tuple[int, float]]:
    """Tasks in their order, each over all depths first."""
    return lambda key: (tasks.index(key[0]), -1.0 if key[1] is None else key[1])


def _key_tokens(chosen: dict[str, Any]) -> str:
    rows = [[row["name"], *(number(row.get(key)) for key in (*_PERPLEXITY, *_DIFFERENCE))] for row in chosen["rows"]]
    return html_table(["", "perplexity", "±", "minus found (nats)", "±"], rows)


def _share(cell: dict[str, Any]) -> str:
    error = cell["standard_error"]
    return f"{cell['accuracy']:.0%}" + (f" ± {error:.0%}" if error is not None else "")


def _rung(rung: dict[str, Any]) -> str:
    if rung["perplexity"] is None:
        return str(rung["outcome"])
    error = rung["standard_error"]
    return number(rung["perplexity"]) + (f" ± {number(error)}" if error is not None else "")
