"""The OpenAPI description: what FastAPI derives from the routes, and the documents that pass through unparsed."""

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field

from api import examples
from api.problems import Problem
from api.schemas import Event
from factor_search.factors_file import FactorsFile
from factor_search.plan.spec import PlanSpec
from factor_search.spec import JobSpec
from factor_search.version import __version__

DESCRIPTION = """
Searches non-uniform RoPE rescale factors for longer context windows.

Submit a job, or a plan of several stages; watch its events, fetch its factors. Every error is a problem document
(RFC 9457). Times are UTC. Where a key is needed, send it as `Authorization: Bearer KEY`.
"""


class Report(BaseModel):
    """Everything a job measured."""

    model_config = ConfigDict(extra="allow")

    schema_: Literal["factor-search/report@1"] = Field(alias="schema")
    name: str
    status: Literal["finished", "interrupted"]
    spec: dict[str, Any]
    model: dict[str, Any] = Field(description="Its rotary geometry.")
    documents: dict[str, list[str]] = Field(description="Sources, by part.")
    search: dict[str, Any] = Field(
        description="How the search went. `ended_by` is candidates, tokens, seconds or no_improvement (of the budget), "
        "or strategy."
    )
    factors: dict[str, Any] = Field(description="The factors found.")
    winner: str | None
    results: list[dict[str, Any]] = Field(description="The found factors and every closed form, on held-out documents.")
    comparison: dict[str, Any] | None = Field(description="The found factors against the best closed form.")
    closed_forms: dict[str, dict[str, Any]]
    versions: dict[str, str]


class PlanReport(BaseModel):
    """What each finished stage of a plan gained."""

    model_config = ConfigDict(extra="allow")

    schema_: Literal["factor-search/plan-report@1"] = Field(alias="schema")
    stages: list[dict[str, Any]] = Field(description="In their order; what is in them depends on the kind of stage.")


class FactorsDocument(FactorsFile):
    """A factors file with its hash."""

    sha256: str = Field(description="Of everything else in the document, as canonical JSON.")


def describe(app: FastAPI) -> dict[str, Any]:
    """The whole description; made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title="factor-search", version=__version__, description=DESCRIPTION.strip(), routes=app.routes
        )
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which no route answers with
            schemas.pop(name, None)
        _add(schemas, "JobSpec", JobSpec, "validation")
        _add(schemas, "PlanSpec", PlanSpec, "validation")
        _add(schemas, "FactorsFile", FactorsDocument, "serialization")
        for model in (Report, PlanReport, Event, Problem):
            _add(schemas, model.__name__, model, "serialization" if model is not Problem else "validation")
        schemas["JobSpec"]["examples"] = [examples.SPEC]
        schemas["PlanSpec"]["examples"] = [examples.PLAN_SPEC]
        specification = {"anyOf": [{"$ref": "#/components/schemas/JobSpec"}, {"type": "object"}]}
        schemas["Job"]["properties"]["spec"] = schemas["Job"]["properties"]["spec"] | specification
        schemas["Plan"]["properties"]["spec"] = {"$ref": "#/components/schemas/PlanSpec"}
        document["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "Made by factor-search keys create."},
            "password": {"type": "http", "scheme": "basic", "description": "The key as password, for browsers."},
        }
        for path, operations in document["paths"].items():
            for operation in operations.values():
                if path not in ("/healthz", "/readyz"):
                    operation["security"] = [{}, {"key": []}, {"password": []}]
        examples.add_examples(document)
        app.openapi_schema = document
    return app.openapi_schema


def _add(
    schemas: dict[str, Any], name: str, model: type[BaseModel], mode: Literal["validation", "serialization"]
) -> None:
    schema = model.model_json_schema(mode=mode, ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs", {}))
    schemas[name] = schema
