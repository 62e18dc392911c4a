"""Training texts for the benchmark's models, from this package's dependencies, and books if there are any.

The split of each text is fixed: documents for training, and long documents that no model is trained on.
"""

import ast
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from factor_search.testbed.corpus import long_lines, standard_library

EVALUATED_SHARE = 6
"""One document of this many is not used for training."""
SHARED_LINES_ALLOWED = 0.2
"""A document with a larger share of long lines that also occur in training documents is not used for evaluation."""
PACKAGES = ("transformers", "numpy", "optuna", "sqlalchemy", "pydantic")

Text = tuple[list[bytes], list[bytes]]
"""Documents for training, documents for evaluation."""


def read_text(name: str) -> Text:
    """A text by name: ``python``, ``docstrings``, ``headers`` or ``books``."""
    if name == "books":
        return _books()
    documents = list({"python": _python, "docstrings": _docstrings, "headers": _headers}[name]())
    return _divided(documents)


def _divided(documents: list[tuple[str, bytes]]) -> Text:
    train: list[bytes] = []
    evaluate: list[bytes] = []
    seen: set[str] = set()
    for name, text in sorted(documents, key=lambda document: _digest(document[0].encode())):
        if (digest := _digest(text)) in seen or len(text) < 256:
            continue
        seen.add(digest)
        kept = int(_digest(name.encode())[:8], 16) % EVALUATED_SHARE == 0
        (evaluate if kept else train).append(text)
    lines = {line for text in train for line in long_lines(text)}
    return train, [text for text in evaluate if _shared(text, lines) <= SHARED_LINES_ALLOWED]


def _shared(text: bytes, lines: set[bytes]) -> float:
    own = long_lines(text)
    return sum(line in lines for line in own) / max(len(own), 1)


def _python() -> Iterator[tuple[str, bytes]]:
    library = standard_library()
    for file in sorted(library.rglob("*.py")):
        relative = file.relative_to(library)
        if relative.parts[0] not in ("site-packages", "dist-packages"):
            yield str(relative), file.read_bytes()


def _docstrings() -> Iterator[tuple[str, bytes]]:
    """For each module of the installed packages, its docstrings one after the other."""
    for package in PACKAGES:
        root = Path(sysconfig.get_paths()["purelib"]) / package
        for file in sorted(root.rglob("*.py")):
            try:
                tree = ast.parse(file.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
                continue
            described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            parts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, described)]
            text = "\n\n".join(dict.fromkeys(part for part in parts if part))
            yield f"{package}/{file.relative_to(root)}", text.encode()


def _headers() -> Iterator[tuple[str, bytes]]:
    """The C++ headers that torch ships."""
    root = Path(sysconfig.get_paths()["purelib"]) / "torch" / "include"
    for file in sorted(root.rglob("*.h")):
        yield str(file.relative_to(root)), file.read_bytes()


def _books() -> Text:
    """Use the first three quarters of each book for training; cut the rest into chapters of 8 KB."""
    folder = os.environ.get("FACTOR_SEARCH_BOOKS")
    train, evaluate = [], []
    for file in sorted(Path(folder).glob("*.txt")) if folder else ():
        text = file.read_bytes()
        border = len(text) * 3 // 4
        train.append(text[:border])
        evaluate += [text[start : start + 8_192] for start in range(border, len(text) - 8_192, 8_192)]
    if not train:
        raise SystemExit("no books: set FACTOR_SEARCH_BOOKS to a folder of long .txt files")
    return train, sorted(evaluate, key=_digest)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
