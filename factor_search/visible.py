"""Text of others where it goes out: what a terminal or a log would obey is shown instead.

Names of files, models and jobs, and messages about them, may hold escape sequences, ends of lines, and characters that
turn the direction of writing. And what libraries say, or a traceback shows, may hold a password.
"""

import json
import logging
import os
import re
from datetime import UTC, datetime
from typing import Any, TextIO

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every log record has; other fields are of its event."""
HIDDEN = "***"
_IN_URL = re.compile(r'(?<!/)//(?:[^\s/?#@:"<>]*:(?!\d+(?:[/?#]|$))[^\s"<>]*|[^\s/?#"<>]*)@')
"""Who asks, and the password, before the host. Some passwords have what should have been written as %2F or %40, so that
they end at the last ``@`` that they can."""
_NAMED = re.compile(
    r"\b((?:ssl)?(?:password|passwd|secret|api_?key|(?:access_)?token)=)(?:'[^']*'|\"[^\"]*\"|[^\s&;,<>]+)",
    re.IGNORECASE,
)
_KINDS = re.compile(r"\bhf_[A-Za-z0-9]{16,}|\bwhsec_[\w+/=-]{16,}|(?:(?<=Bearer )|(?<=Basic ))[\w+/=.~-]{8,}")
"""Tokens of the hub, secrets of webhooks, and what a header of a request has."""
_VARIABLES = re.compile(r".*(PASSWORD|TOKEN|SECRET|(API|ACCESS|PRIVATE|SECRET|SEARCH)_?KEY|HEADERS)")
LEAST_SECRET = 6
"""Characters of a variable's value that is looked for; a shorter one would be found in any text."""


def masked(text: str) -> str:
    """The same text with ``***`` in place of passwords and tokens.

    They are those of URLs, those that say what they are, and the values of variables of the environment such as
    ``WANDB_API_KEY``, ``MLFLOW_TRACKING_PASSWORD`` and ``OTEL_EXPORTER_OTLP_HEADERS``.
    """
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _NAMED.sub(rf"\1{HIDDEN}", _IN_URL.sub(f"//{HIDDEN}@", text))
    return _KINDS.sub(HIDDEN, text)


def _secrets() -> set[str]:
    """The values of variables that are secret."""
    found = set()
    for name, value in os.environ.items():
        if _VARIABLES.fullmatch(name):
            headers = [header.partition("=")[2] for header in value.split(",")] if name.endswith("HEADERS") else []
            found |= {one.strip() for one in [value, *headers] if len(one.strip()) >= LEAST_SECRET}
    return found


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
    """Formats log records: a message is one line, and lines below it are indented, so that none can be forged.

    Passwords in them are masked.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The message on one line."""
        record.message = visible(masked(record.message))
        return visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """The traceback, indented."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        """The stack, indented."""
        return _indented(super().formatStack(stack_info))


class JsonFormatter(logging.Formatter):
    """Formats log records as JSON, one line an event.

    Each has ``at`` (UTC), ``level``, ``logger``, ``message``, and the fields that were given with ``extra``, such as
    ``event`` and ``job``. Whatever a terminal would obey is written out, and passwords are masked.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _OWN_FIELDS}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        line = {name: masked(value) if isinstance(value, str) else value for name, value in line.items()}
        return visible(json.dumps(line, default=str, ensure_ascii=False))


def set_up_logging(level: str, style: str = "text") -> None:
    """Log to standard error, visibly.

    Args:
        level: one of :data:`LEVELS`; less severe messages are not logged.
        style: one of :data:`FORMATS`.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else VisibleFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _indented(text: str) -> str:
    return "\n".join(f"    {visible(line, chr(9))}" for line in masked(text).split("\n"))
