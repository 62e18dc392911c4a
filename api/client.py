"""A typed client of the REST interface, for scripts and notebooks; the command line is built on it."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel

from api.client_errors import ConflictError, NotFoundError, ServiceError, UnauthorisedError, UnreachableError
from api.client_resources import Jobs, Plans
from api.client_storage import Storage
from api.connection import DEFAULT_URL, Connection, parsed
from api.estimate_schemas import Estimate
from api.plan_schemas import Plan
from api.schemas import Evaluation, Event, Health, Job
from factor_search.plan.spec import PlanSpec
from factor_search.spec import JobSpec

__all__ = [
    "DEFAULT_URL",
    "Client",
    "ConflictError",
    "Estimate",
    "Evaluation",
    "Event",
    "Health",
    "Job",
    "Jobs",
    "NotFoundError",
    "Plan",
    "Plans",
    "ServiceError",
    "UnauthorisedError",
    "UnreachableError",
]


class Client:
    """Talks to one server; a context manager, and safe to use from several threads."""

    def __init__(self, url: str | None = None, key: str | None = None, *, retry_seconds: float = 300.0) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: of the server; default ``$FACTOR_SEARCH_URL``, else this machine's.
            key: an API key; default ``$FACTOR_SEARCH_KEY``, else none.
            retry_seconds: how long a watched server may be away before that is an error.

        Raises:
            ServiceError: the URL or the key cannot be one.
        """
        self._connection = Connection(url, key, retry_seconds)
        self.url, self.is_local = self._connection.url, self._connection.is_local
        self.jobs = Jobs(self._connection)
        self.plans = Plans(self._connection)
        self.storage = Storage(self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._connection.close()

    def of(self, id: str) -> Jobs | Plans:
        """The resource that an id, or the beginning of one, belongs to: ids of plans begin with p."""
        return self.plans if id.startswith("p") else self.jobs

    def estimate(self, spec: JobSpec | PlanSpec | Mapping[str, Any]) -> Estimate:
        """What a job or plan will cost; nothing is queued."""
        document = spec.model_dump(mode="json", exclude_unset=True) if isinstance(spec, BaseModel) else dict(spec)
        return parsed(Estimate, self._connection.request("POST", "/v1/estimate", json=document))

    def health(self) -> Health:
        """That the server answers, and its version."""
        return parsed(Health, self._connection.get("/healthz"))
