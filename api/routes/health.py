"""Whether the server lives and can serve, and its metrics."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from api.problems import documented
from api.routes.resource import Stores
from api.schemas import Health, Readiness
from factor_search.version import __version__

router = APIRouter(tags=["health"])


@router.get("/healthz", response_model=Health, summary="Liveness")
def health() -> Health:
    """The process answers, whatever the database does."""
    return Health(status="ok", version=__version__)


@router.get("/readyz", response_model=Readiness, summary="Readiness", responses=documented(503))
def readiness(stores: Stores) -> Readiness:
    """The database can be reached; how many coordinators are alive is told, but does not count."""
    return Readiness(status="ready", database="reachable", coordinators=len(stores.live_coordinators()))


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses=documented(
        401, 403, 503, ok={"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}
    ),
)
def metrics(request: Request) -> Response:
    """Jobs by state, evaluations by outcome, coordinators, workers, requests."""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)
