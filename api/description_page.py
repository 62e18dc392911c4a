"""The OpenAPI description as one page without script: operations, parameters, bodies, answers and schemas."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any
from urllib.parse import urlencode

STYLE = """
:root{color-scheme:light dark;--text:#222;--page:#fff;--line:#ddd;--code:#f6f6f6;--method:#B34700;
--quiet:#666;--link:#0b57a4}
@media(prefers-color-scheme:dark){:root{--text:#ddd;--page:#181818;--line:#444;--code:#262626;
--method:#ff9a5c;--quiet:#aaa;--link:#8ab8ff}}
body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:var(--text);
background:var(--page)}
a{color:var(--link)}h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.5rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin-top:2rem;overflow-wrap:anywhere}nav ul{columns:22rem;padding-left:1.2rem;font-size:.92rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.25rem .8rem .25rem 0}
td{border-top:1px solid var(--line);overflow-wrap:anywhere}code,pre{font:.88rem/1.45 ui-monospace,monospace}
pre{background:var(--code);padding:.8rem;white-space:pre-wrap;overflow-wrap:anywhere}
.method{color:var(--method);font-weight:600}.quiet{color:var(--quiet)}
"""
SERVER = "http://127.0.0.1:8400"
REFERENCE = "#/components/schemas/"


def render(document: Mapping[str, Any]) -> str:
    """The page of an OpenAPI document."""
    info, schemas = document["info"], document["components"]["schemas"]
    operations = "".join(_operations(document["paths"]))
    described = "".join(_schema_section(name, schemas[name]) for name in sorted(schemas))
    title = f"{escape(info['title'])} {escape(info['version'])}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body><h1>{title}</h1>'
        f'{_paragraphs(info["description"])}<p><a href="/openapi.json">openapi.json</a> is the same for programs. '
        f'<a href="/">Jobs and plans</a> are on the page.</p>{"".join(_contents_list(document["paths"]))}'
        f"<h2>Operations</h2>{operations}<h2>Schemas</h2>{described}</body></html>\n"
    )


def _contents_list(paths: Mapping[str, Any]) -> Iterator[str]:
    """Links to all operations."""
    yield '<nav aria-label="Operations"><ul>'
    for path, methods in paths.items():
        for method, operation in methods.items():
            name = f"{method.upper()} {escape(path)}"
            yield f'<li><a href="#{escape(operation["operationId"])}">{name}</a></li>'
    yield "</ul></nav>"


def _operations(paths: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in paths.items():
        for method, operation in methods.items():
            yield f'<h3 id="{escape(operation["operationId"])}"><span class="method">{method.upper()}</span> '
            yield f'<code>{escape(path)}</code> <span class="quiet">{escape(operation["summary"])}</span></h3>'
            yield _paragraphs(operation.get("description", ""))
            parameters = [
                (f"{one['name']} ({one['in']})", _kind(one["schema"]), one.get("description", ""))
                for one in operation.get("parameters", ())
            ]
            if parameters:
                yield _table(("parameter", "value", ""), parameters)
            if "requestBody" in operation:
                yield f"<p>Body: {_contents(operation['requestBody'])}</p>"
            yield f"<pre>{escape(example_request(method, path, operation))}</pre>"
            answers = [
                (status, _contents(answer), answer.get("description", ""))
                for status, answer in sorted(operation["responses"].items())
            ]
            yield _table(("status", "answer", ""), answers)
            for example in _examples(operation):
                yield f"<pre>{escape(example)}</pre>"


def example_request(method: str, path: str, operation: Mapping[str, Any]) -> str:
    """A command line that sends a request to an operation, with the examples of its parameters and its body."""
    query = {}
    for one in operation.get("parameters", ()):
        examples = one.get("examples") or one["schema"].get("examples") or [None]
        if one["in"] == "path":
            path = path.replace(f"{{{one['name']}}}", str(examples[0]))
        elif one["in"] == "query" and one.get("required"):
            query[one["name"]] = examples[0]
    words = ["curl", "--fail"]
    if method != "get":
        words += ["--request", method.upper()]
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if "example" in content:
        words += ["--header", "Content-Type: application/json", "--data", json.dumps(content["example"])]
    words.append(f"{SERVER}{path}" + (f"?{urlencode(query, safe=',')}" if query else ""))
    return shlex.join(words)


def _examples(operation: Mapping[str, Any]) -> Iterator[str]:
    """The examples of good answers, as text."""
    for status, answer in operation["responses"].items():
        for content in answer.get("content", {}).values():
            if status.startswith("2") and "example" in content:
                example = content["example"]
                yield example if isinstance(example, str) else json.dumps(example, indent=2)


def _schema_section(name: str, schema: Mapping[str, Any]) -> str:
    parts = [f'<h3 id="{escape(name)}"><code>{escape(name)}</code></h3>{_paragraphs(schema.get("description", ""))}']
    required = schema.get("required", ())
    rows = [
        (key if key in required else f"{key}, optional", _kind(value), value.get("description", ""))
        for key, value in schema.get("properties", {}).items()
    ]
    parts.append(_table(("key", "value", ""), rows) if rows else f"<p>{_kind(schema)}</p>")
    for example in schema.get("examples", ()):
        if isinstance(example, dict):
            parts.append(f"<pre>{escape(json.dumps(example, indent=2))}</pre>")
    return "".join(parts)


def _table(heads: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    """Rows of a name (text), a value (HTML) and a description (text)."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{value}</td><td>{_inline(description)}</td></tr>"
        for name, value, description in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _contents(holder: Mapping[str, Any]) -> str:
    contents = holder.get("content", {})
    return "; ".join(f"<code>{escape(kind)}</code> {_kind(one.get('schema', {}))}" for kind, one in contents.items())


def _kind(schema: Mapping[str, Any]) -> str:
    """What a schema allows, in a few words (HTML)."""
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(REFERENCE))
        return f'<a href="#{name}">{name}</a>'
    if "enum" in schema or "const" in schema:
        return ", ".join(f"<code>{escape(json.dumps(one))}</code>" for one in schema.get("enum", [schema.get("const")]))
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(_kind(one) for one in schema[several])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])}"
    limits = [
        f"{word} {schema[key]}"
        for key, word in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("exclusiveMaximum", "below"),
        )
        if key in schema
    ]
    return escape(" ".join([str(kind), *limits]))


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>" for part in text.strip().split("\n\n") if part)


def _inline(text: str) -> str:
    """Text with code between backticks."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
