"""A typed client of the REST interface, for scripts and notebooks; the command line is built on it."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Self
from urllib.parse import quote

from api.client_errors import ConflictError, NotFoundError, ServiceError, UnauthorisedError, UnreachableError
from api.connection import DEFAULT_URL, Connection, parsed
from api.plan_client import PlanClient, the_one
from api.plan_schemas import Plan
from api.schemas import Evaluation, EvaluationPage, Event, Health, Job, JobPage
from factor_search.spec import JobSpec
from storage.states import ENDED

__all__ = [
    "DEFAULT_URL",
    "Client",
    "ConflictError",
    "Evaluation",
    "Event",
    "Health",
    "Job",
    "NotFoundError",
    "Plan",
    "ServiceError",
    "UnauthorisedError",
    "UnreachableError",
]


class Client:
    """Talks to one server; a context manager, and safe to use from several threads."""

    def __init__(self, url: str | None = None, key: str | None = None, *, patience_seconds: float = 300.0) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: of the server; default ``$FACTOR_SEARCH_URL``, else this machine's.
            key: an API key; default ``$FACTOR_SEARCH_KEY``, else none.
            patience_seconds: how long a watched server may be away before that is an error.

        Raises:
            ServiceError: the URL or the key cannot be one.
        """
        self._connection = Connection(url, key, patience_seconds)
        self.url, self.is_local = self._connection.url, self._connection.is_local
        self.plans = PlanClient(self._connection)
        """The same for plans."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._connection.close()

    def submit(self, spec: JobSpec | Mapping[str, Any], idempotency_key: str | None = None) -> Job:
        """Queue a job.

        Args:
            spec: what to search.
            idempotency_key: the same key never makes a second job. By default each call has one of its own, so a
                request that is sent again after a broken connection makes one job too.
        """
        if isinstance(spec, JobSpec):
            spec = spec.model_dump(mode="json", exclude_unset=True)
        return parsed(Job, self._connection.submit("/v1/jobs", spec, idempotency_key))

    def jobs(self, *, state: str | None = None, limit: int | None = None) -> Iterator[Job]:
        """Jobs, newest first.

        Args:
            state: only those in this state.
            limit: at most so many; default all.
        """
        pages = self._connection.pages("/v1/jobs", JobPage, lambda page: page.next, state=state, limit=limit)
        return islice((item for page in pages for item in page.jobs), limit)

    def job(self, job_id: str) -> Job:
        """A job as it is now."""
        return parsed(Job, self._connection.get(_path(job_id)))

    def find(self, prefix: str) -> Job:
        """The one job whose id begins so.

        Raises:
            NotFoundError: there is none, or more than one.
        """
        if len(prefix) >= 24 and prefix.isalnum():
            return self.job(prefix)
        return the_one(prefix, self.jobs() if prefix.isalnum() else (), "job")

    def pause(self, job_id: str) -> Job:
        """Stop a job so that it can be resumed."""
        return parsed(Job, self._connection.request("POST", _path(job_id, "pause")))

    def resume(self, job_id: str) -> Job:
        """Let a paused job go on."""
        return parsed(Job, self._connection.request("POST", _path(job_id, "resume")))

    def cancel(self, job_id: str) -> Job:
        """End a job for good."""
        return parsed(Job, self._connection.request("POST", _path(job_id, "cancel")))

    def events(
        self, job_id: str, after: int = 0, *, on_interruption: Callable[[UnreachableError], None] | None = None
    ) -> Iterator[Event]:
        """Events after a number, those to come included, until the job has ended: each once, in order.

        A connection that breaks is made again, from the event last seen; a server may be away for as long as this
        client is patient.

        Args:
            job_id: the job.
            after: number of the last event not wanted.
            on_interruption: hears of each broken connection.
        """
        return self._connection.follow(
            _path(job_id, "events"),
            after,
            is_last=lambda event: event.kind in ENDED,
            is_over=lambda: self.job(job_id).ended,
            on_interruption=on_interruption,
        )

    def wait(self, job_id: str) -> Job:
        """The job once it has ended."""
        for _ in self.events(job_id):
            pass
        return self.job(job_id)

    def evaluations(self, job_id: str, *, part: str = "search", after: int = -1) -> Iterator[Evaluation]:
        """A job's candidates on one part of the documents, in the order proposed."""
        following: int | None = after
        while following is not None:
            query = {"part": part, "after": following, "limit": 500}
            page = parsed(EvaluationPage, self._connection.get(_path(job_id, "evaluations"), query))
            yield from page.evaluations
            following = page.next

    def factors(self, job_id: str, format: str = "factors") -> dict[str, Any]:
        """The factors that a finished job found, as ``factors`` file or as ``huggingface`` configuration."""
        document: dict[str, Any] = self._connection.get(_path(job_id, "factors"), {"format": format}).json()
        return document

    def report(self, job_id: str) -> dict[str, Any]:
        """The report of a finished job."""
        document: dict[str, Any] = self._connection.get(_path(job_id, "report"), {"format": "json"}).json()
        return document

    def report_html(self, job_id: str) -> str:
        """The report of a finished job as a page."""
        return self._connection.get(_path(job_id, "report"), {"format": "html"}).text

    def health(self) -> Health:
        """That the server answers, and its version."""
        return parsed(Health, self._connection.get("/healthz"))


def _path(job_id: str, rest: str = "") -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}" + (f"/{rest}" if rest else "")
