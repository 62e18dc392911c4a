"""The OpenAPI description as one page without script: operations, parameters, bodies, answers and schemas."""

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.5rem;border-bottom:1px solid #ddd}
h3{font-size:1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.25rem .8rem .25rem 0}
td{border-top:1px solid #eee}code,pre{font:.88rem/1.45 ui-monospace,monospace}
pre{background:#f6f6f6;padding:.8rem;overflow:auto}
.method{color:#B34700;font-weight:600}.quiet{color:#666}
"""
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
        f'{_paragraphs(info["description"])}<p><a href="/openapi.json">openapi.json</a> is the same for programs.</p>'
        f"<h2>Operations</h2>{operations}<h2>Schemas</h2>{described}</body></html>\n"
    )


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
            answers = [
                (status, _contents(answer), answer.get("description", ""))
                for status, answer in operation["responses"].items()
            ]
            yield _table(("status", "answer", ""), answers)


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
