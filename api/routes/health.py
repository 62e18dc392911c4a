"""Whether the server lives and can serve, and its metrics.

Both are answered on the event loop from what is known already: they wait for no thread, lock or database.
"""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from api.health import HealthWatch
from api.problems import RETRY_AFTER_SECONDS, RefusedError, documented
from api.schemas import Health, Readiness
from factor_search.version import __version__

router = APIRouter(tags=["health"])


@router.get("/healthz", response_model=Health, summary="Liveness", responses=documented(413))
async def health() -> Response:
    """The process answers, whatever the database does."""
    return _shown(Health(status="ok", version=__version__))


@router.get("/readyz", response_model=Readiness, summary="Readiness", responses=documented(413, 503))
async def readiness(request: Request) -> Response:
    """The database can be read and written; how many coordinators are alive is told, but does not count."""
    watch: HealthWatch = request.app.state.health
    if (fault := watch.fault) is not None:
        raise RefusedError(503, fault, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
    age = round(watch.age_seconds, 3)
    return _shown(Readiness(status="ready", database="reachable", coordinators=watch.coordinators, age_seconds=age))


def _shown(value: BaseModel) -> Response:
    return Response(value.model_dump_json(), media_type="application/json")


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses=documented(
        *(401, 403, 413, 429, 503),
        ok={"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}},
    ),
)
def metrics(request: Request) -> Response:
    """Jobs by state, evaluations by outcome, coordinators, workers, requests."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)
