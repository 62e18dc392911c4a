"""Values as HTML for notebooks: every text is escaped, and colours are those of the page, be it light or dark."""

from collections.abc import Mapping, Sequence
from html import escape

HIGHLIGHTED = ("found", "short")
"""Names of the table rows that stand out: the winner, and the factors for short inputs."""
LINE = "1px solid rgba(128,128,128,.4)"
ON_PAPER = "background:#fff;color:#222;max-width:50rem;margin:.5rem 0;padding:.25rem;border-radius:4px"
"""Of drawings, whose lines and letters are dark."""


def html_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table; all cells are escaped, and rows named ``found`` or ``short`` are highlighted."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    lines = []
    for row in rows:
        kind = " class=found" if row[0] in HIGHLIGHTED else ""
        lines.append(f"<tr{kind}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def html_values(title: str, values: Mapping[str, str], *, below: str = "") -> str:
    """Format named values of one thing.

    Args:
        title: above them.
        values: by name; escaped.
        below: HTML.
    """
    cell = f"text-align:left;border-bottom:{LINE};padding:.2rem .8rem .2rem 0"
    rows = "".join(
        f'<tr><th scope="row" style="{cell}">{escape(name)}</th><td style="{cell}">{escape(value)}</td></tr>'
        for name, value in values.items()
    )
    return f"<div><strong>{escape(title)}</strong><table>{rows}</table>{below}</div>"


def html_numbers(title: str, numbers: Sequence[float]) -> str:
    """Format a long list of numbers, folded."""
    listed = ", ".join(f"{number:.6g}" for number in numbers)
    return f"<details><summary>{escape(title)}</summary><code>{listed}</code></details>"
