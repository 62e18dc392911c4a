"""Hooks of mkdocs: pages of reference that are generated from the code, and links that lead out of ``docs/``.

``make docs`` builds the site. Nothing here is needed to read the pages in the repository.
"""

import argparse
import inspect
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from prometheus_client import CollectorRegistry
from transformers import LlamaConfig

from api.app import create_app
from api.cli import build_parser
from api.cli.commands import COMMANDS
from api.metrics import RecordMetrics, RequestMetrics
from api.openapi import FactorsDocument, Report
from api.publishing.claims import Claims
from api.schemas import Event
from api.settings import Settings
from factor_search.measure.evaluation import Evaluation, Outcome
from factor_search.methods import METHODS
from factor_search.model.configuration import read_geometry
from factor_search.plan.spec import PlanSpec
from factor_search.spec import JobSpec
from storage.database import Database
from workers.policy import Policy

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = re.compile(r"\]\((?:\.\./)+(CHANGELOG\.md|LICENSE|examples/[^)]*)\)")
REFERENCE = "#/$defs/"
EXAMPLE_SCALE = 4


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the examples to which pages link."""
    for name, page in PAGES.items():
        files.append(File.generated(config, name, content=page()))
    for example in sorted((ROOT / "examples").rglob("*")):
        if example.is_file():
            name = example.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(example)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that leave ``docs/`` lead to the copy of the file in the site, or to nothing where it has none."""
    depth = page.file.src_uri.count("/")
    return OUTSIDE.sub(lambda link: f"]({'../' * depth}{_in_site(link[1])})", markdown)


def _in_site(path: str) -> str:
    return {"CHANGELOG.md": "changes.md", "LICENSE": "licence.md"}.get(path, path)


def specification_page() -> str:
    """Every key of a job."""
    text = "What the keys mean together, with examples: [job specification](job-specification.md)."
    return _schemas("Every key of a job", text, JobSpec.model_json_schema())


def plan_page() -> str:
    """Every key of a plan."""
    text = "What the keys mean together, with examples: [plan](plan.md)."
    return _schemas("Every key of a plan", text, PlanSpec.model_json_schema())


def command_page() -> str:
    """Every command with its usage and options."""
    parts = ["# Every command and option", "Explained with examples: [command line](command-line.md)."]
    for name, command in COMMANDS.items():
        if any(find_spec(package) is None for package in command.needs):
            continue
        parsers = next(
            action for action in build_parser(name)._actions if isinstance(action, argparse._SubParsersAction)
        )
        parts += [f"## {name}", f"{parsers.choices[name].description}", *_parser(parsers.choices[name])]
    return "\n\n".join(parts) + "\n"


def _parser(parser: argparse.ArgumentParser) -> Iterator[str]:
    usage = re.sub(r"\s+", " ", parser.format_usage().removeprefix("usage: ")).strip()
    yield f"```text\n{usage}\n```"
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield f"### {parser.prog.rpartition(' ')[2]} {name}"
                yield from _parser(inner)
        elif not isinstance(action, argparse._HelpAction):
            names = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{action.metavar or action.dest}`"
            rows.append((names, _cell((action.help or "") % _help_values(action, parser))))
    if rows:
        yield _table(("argument", "meaning"), rows)


def _help_values(action: argparse.Action, parser: argparse.ArgumentParser) -> dict[str, Any]:
    values = {key: value for key, value in vars(action).items() if value is not argparse.SUPPRESS}
    if action.choices is not None:
        values["choices"] = ", ".join(str(choice) for choice in action.choices)
    return values | {"prog": parser.prog}


def rest_page() -> str:
    """Every route."""
    document = create_app(
        Settings(database_url="sqlite://", policy=Policy((), allow_hub=False, allow_remote_code=False), loopback=True)
    ).openapi()
    parts = ["# Every route", "Explained, with events and states: [REST interface](rest.md)."]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts += [f"## {method.upper()} `{path}`", operation["summary"]]
            if operation.get("description"):
                parts.append(operation["description"])
            rows = [
                (f"`{one['name']}` ({one['in']})", _kind(one["schema"]), _cell(one.get("description", "")))
                for one in operation.get("parameters", ())
            ]
            if rows:
                parts.append(_table(("parameter", "value", "meaning"), rows))
            answers = [
                (f"`{status}`", _cell(answer["description"])) for status, answer in operation["responses"].items()
            ]
            parts.append(_table(("status", "answer"), answers))
    return "\n\n".join(parts) + "\n"


def metrics_page() -> str:
    """Every metric, read from a server's registry."""
    registry = CollectorRegistry()
    RequestMetrics(registry)
    with tempfile.TemporaryDirectory() as folder, Database(f"sqlite:///{folder}/jobs.db") as database:
        families = [*registry.collect(), *RecordMetrics(database, 60).collect()]
    labels = {
        "factor_search_http_requests": "method, route, status",
        "factor_search_http_request_seconds": "method, route",
    }
    rows = [
        (
            f"`{family.name}{'_total' if family.type == 'counter' else ''}`",
            family.type,
            labels.get(family.name) or ", ".join(getattr(family, "_labelnames", ())),
            _cell(family.documentation),
        )
        for family in families
    ]
    text = "`GET /metrics` answers in the text format of Prometheus. See [operations](../operations.md) for alerts."
    return f"# Every metric\n\n{text}\n\n{_table(('metric', 'type', 'labels', 'meaning'), rows)}\n"


def files_page() -> str:
    """The files that are written."""
    parts = [
        "# Every file format",
        "`factors.json` is explained with an example in [factors.json](factors-file.md).",
        *_with_objects("factors.json", FactorsDocument.model_json_schema()),
        *_with_objects("report.json", Report.model_json_schema()),
        "## evaluations.jsonl",
        f"One JSON object a line. {inspect.getdoc(Evaluation)}",
        _table(("key", "meaning"), [(f"`{key}`", _cell(text)) for key, text in _attributes(Evaluation)]),
        f"`outcome` is one of {', '.join(f'`{outcome}`' for outcome in Outcome)}.",
        *_with_objects("An event of the stream", Event.model_json_schema()),
        *_with_objects("reproduce.json", _without_job(Claims.model_json_schema())),
        "Written by [publish](../how-to/publish-factors.md). JobSpec has [the keys of a job](every-key-of-a-job.md).",
    ]
    return "\n\n".join(parts) + "\n"


def _without_job(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without the definition of a job, which has a page of its own."""
    of_a_job = {"JobSpec", *JobSpec.model_json_schema()["$defs"]}
    own = {name: inner for name, inner in schema["$defs"].items() if name not in of_a_job}
    spec = schema["properties"]["spec"] | {"$ref": "JobSpec"}
    return schema | {"$defs": own, "properties": schema["properties"] | {"spec": spec}}


def _attributes(kind: type) -> Iterator[tuple[str, str]]:
    """Fields of a dataclass with the text that stands below each; those that have none use the field's name."""
    source = inspect.getsource(kind)
    for name in kind.__annotations__:
        found = re.search(rf'^    {name}: [^\n]*\n    """(.*?)"""', source, re.MULTILINE | re.DOTALL)
        yield name, re.sub(r"\s+", " ", found[1]) if found else name.replace("_", " ")


def methods_page() -> str:
    """Every closed form: formula, source, and values."""
    example = read_geometry(LlamaConfig(head_dim=64, max_position_embeddings=2048))
    target = EXAMPLE_SCALE * example.original_length
    parts = [
        "# Every closed form",
        "λ of pair i divides its frequency; s = target length / original length; d = rotary dimension. Below each "
        f"formula: λ for base {example.rope_theta:,.0f}, d = {example.rotary_dim}, an original length of "
        f"{example.original_length:,} tokens and s = {EXAMPLE_SCALE}.",
    ]
    pairs = [0, 8, 12, 16, 20, 24, 28, 31]
    for name, method in METHODS.items():
        factors = method(example, target)
        shown = [[f"{factors.rescale_factors[pair]:.3f}" for pair in pairs]]
        table = _table([f"pair {pair}" for pair in pairs], [tuple(row) for row in shown])
        attention = f"The attention factor is {factors.attention_factor:.4f}."
        parts += [f"## {name}", _escaped(inspect.getdoc(method) or ""), table, attention]
    return "\n\n".join(parts) + "\n"


def changes_page() -> str:
    """The changes of each version."""
    return (ROOT / "CHANGELOG.md").read_text().replace("](docs/", "](")


def licence_page() -> str:
    """The licence."""
    return f"# Licence\n\n```text\n{(ROOT / 'LICENSE').read_text()}\n```\n"


PAGES: dict[str, Callable[[], str]] = {
    "reference/every-key-of-a-job.md": specification_page,
    "reference/every-key-of-a-plan.md": plan_page,
    "reference/every-command.md": command_page,
    "reference/every-route.md": rest_page,
    "reference/every-metric.md": metrics_page,
    "reference/every-file-format.md": files_page,
    "reference/every-closed-form.md": methods_page,
    "changes.md": changes_page,
    "licence.md": licence_page,
}


def _schemas(title: str, text: str, schema: Mapping[str, Any]) -> str:
    """A page of a schema: its own keys, then those of each object in it."""
    return "\n\n".join([f"# {title}", text, *_with_objects("Top level", schema)]) + "\n"


def _with_objects(title: str, schema: Mapping[str, Any]) -> list[str]:
    parts = _properties(title, schema)
    for name, inner in sorted(schema.get("$defs", {}).items()):
        parts += _properties(name, inner)
    return parts


def _properties(title: str, schema: Mapping[str, Any]) -> list[str]:
    required = schema.get("required", ())
    rows = [
        (
            f"`{key}`",
            _kind(value),
            "required" if key in required else _default(value),
            _cell(value.get("description", "")),
        )
        for key, value in schema.get("properties", {}).items()
    ]
    described = [re.sub(r"\s+", " ", _escaped(schema["description"]))] if schema.get("description") else []
    return [f"## {title}", *described, *([_table(("key", "value", "default", "meaning"), rows)] if rows else [])]


def _default(value: Mapping[str, Any]) -> str:
    if "default" not in value:
        return ""
    return "see there" if isinstance(value["default"], dict) else f"`{json.dumps(value['default'])}`"


def _kind(schema: Mapping[str, Any]) -> str:
    """What a schema allows, in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if schema["$ref"].startswith(REFERENCE) else name
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_kind(one) for one in schema[several]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{one}`" for one in schema.get("enum", [schema.get("const")]))
    kind = {"null": "null", "array": f"list of {_kind(schema['items'])}" if "items" in schema else "list"}
    limits = [
        f"{word} {schema[key]:,}"
        for key, word in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in schema
    ]
    return " ".join([kind.get(schema.get("type", ""), schema.get("type", "any")), *limits])


def _table(heads: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return _escaped(re.sub(r"\s+", " ", text)).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, but for code in backquotes."""
    return re.sub(r"(`[^`]*`)|([*_<\[\]])", lambda found: found[1] or f"&#{ord(found[2])};", text.replace("``", "`"))
