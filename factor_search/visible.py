"""Text of others where it goes out: what a terminal or a log would obey is shown instead.

Names of files, models and jobs, and messages about them, may hold escape sequences, ends of lines, and characters that
turn the direction of writing.
"""

import logging
from typing import Any, TextIO

LEVELS = ("debug", "info", "warning", "error")


def visible(text: str, kept: str = "") -> str:
    r"""The same text with ``\x1b``, ``\n``, ``\u202e`` and their like written out.

    Args:
        text: of others.
        kept: characters that are not written out although they cannot be seen.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in kept or _is_space(one) else _escaped(one) for one in text)


def _is_space(character: str) -> bool:
    """A wide or narrow space, which does nothing but part words, unlike the separators of lines and paragraphs."""
    return character.isspace() and character > "\xa0" and character not in "\u2028\u2029"


def _escaped(character: str) -> str:
    """As JSON escapes it, so that what is valid JSON stays valid; but control characters of ASCII as usual."""
    if character < " ":
        return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character, f"\\x{ord(character):02x}")
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


class VisibleStream:
    """A stream of text, such as standard output, through which nothing goes that a terminal would obey.

    Ends of lines and tabulators pass, and a carriage return where a line begins anew or ends, since progress bars are
    drawn with it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.plain = stream
        """The stream itself, for what is drawn on purpose."""

    def write(self, text: str) -> int:
        """Write text, visibly."""
        body = text.strip("\r")
        start = len(text) - len(text.lstrip("\r"))
        shown = visible(body, "\n\t")
        self.plain.write(text[:start] + shown + text[start + len(body) :] if body else text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)


class VisibleFormatter(logging.Formatter):
    """Formats log records: a message is one line, and lines below it are indented, so that none can be forged."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The message on one line."""
        record.message = visible(record.message)
        return visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """The traceback, indented."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        """The stack, indented."""
        return _indented(super().formatStack(stack_info))


def set_up_logging(level: str) -> None:
    """Log to standard error, visibly.

    Args:
        level: one of :data:`LEVELS`; less severe messages are not logged.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _indented(text: str) -> str:
    return "\n".join(f"    {visible(line, chr(9))}" for line in text.split("\n"))
