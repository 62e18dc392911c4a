"""The jobs and the plans of one server: what the client can do with both, and what only with one of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar, Generic, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from api.client_errors import NotFoundError, UnreachableError
from api.connection import Connection, parsed
from api.plan_schemas import Plan, PlanPage
from api.schemas import EXAMPLE_ID, EXAMPLE_PLAN_ID, Evaluation, EvaluationPage, Event, Job, JobPage
from factor_search.plan.spec import PlanSpec
from factor_search.spec import JobSpec
from storage.states import ENDED

Spec = TypeVar("Spec", JobSpec, PlanSpec)
Item = TypeVar("Item", Job, Plan)


class Resource(Generic[Spec, Item]):
    """Jobs, or plans: ``client.jobs`` and ``client.plans`` of a :class:`api.client.Client`."""

    _word: ClassVar[str]
    _id_length: ClassVar[int]
    _can_be_retried: ClassVar[bool]
    _page: ClassVar[type[JobPage] | type[PlanPage]]
    _item: type[Item]

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def submit(
        self, spec: Spec | Mapping[str, Any], idempotency_key: str | None = None, *, ignore_memory: bool = False
    ) -> Item:
        """Queue one.

        Args:
            spec: what to do.
            idempotency_key: the same key never makes a second one. By default each call has a key of its own, so a
                request that is sent again after a broken connection makes one too.
            ignore_memory: submit it even if it needs more memory than any worker has.
        """
        document = spec.model_dump(mode="json", exclude_unset=True) if isinstance(spec, BaseModel) else spec
        path = f"{self._list_path}?ignore_memory=true" if ignore_memory else self._list_path
        return parsed(self._item, self._connection.submit(path, document, idempotency_key))

    def list(self, *, state: str | None = None, limit: int | None = None) -> Iterator[Item]:
        """All of them, newest first, without their specifications.

        Args:
            state: only those in this state.
            limit: at most so many; default all.
        """
        pages = self._connection.pages(self._list_path, self._page, lambda page: page.next, state=state, limit=limit)
        return islice((item for page in pages for item in getattr(page, f"{self._word}s")), limit)

    def get(self, id: str) -> Item:
        """One as it is now."""
        return parsed(self._item, self._connection.get(self._path(id)))

    def find(self, prefix: str) -> Item:
        """The only one whose id begins with a prefix.

        Raises:
            NotFoundError: there is none, or more than one.
        """
        if len(prefix) >= self._id_length and prefix.isalnum():
            return self.get(prefix)
        return self.get(_only(prefix, self.list() if prefix.isalnum() else (), self._word).id)

    def pause(self, id: str) -> Item:
        """Stop one so that it can be resumed."""
        return self._post(id, "pause")

    def resume(self, id: str) -> Item:
        """Continue one that is paused."""
        return self._post(id, "resume")

    def cancel(self, id: str) -> Item:
        """End one for good."""
        return self._post(id, "cancel")

    def delete(self, id: str) -> None:
        """Delete one that has ended, with all that belongs to it alone."""
        self._connection.request("DELETE", self._path(id))

    def keep(self, id: str, name: str | None) -> Item:
        """Keep one under a name when others are aged out; None ends that."""
        return self._post(id, "keep", {"name": name})

    def events(
        self, id: str, after: int = 0, *, on_interruption: Callable[[UnreachableError], None] | None = None
    ) -> Iterator[Event]:
        """Events after a number, future ones included, until the job or plan has ended: each once, in order.

        A broken connection is made again, from the event last seen; the server may be away for as long as the client
        is set to wait. Events of a plan are its own: one of kind ``stage_queued`` names the ``job`` that has more.

        Args:
            id: of the job or plan.
            after: number of the last event not wanted.
            on_interruption: called for each broken connection.
        """
        return self._connection.follow(
            self._path(id, "events"),
            after,
            is_last=lambda event: event.kind in ENDED and not self._can_be_retried,
            is_over=lambda: self.get(id).ended,
            on_interruption=on_interruption,
        )

    def wait(self, id: str) -> Item:
        """The job or plan once it has ended."""
        for _ in self.events(id):
            pass
        return self.get(id)

    def report(self, id: str) -> dict[str, Any]:
        """The report of a finished job, or of the finished stages of a plan."""
        return self._document(id, "report", format="json")

    def report_html(self, id: str) -> str:
        """The same report as a page."""
        return self._connection.get(self._path(id, "report"), {"format": "html"}).text

    def _document(self, id: str, name: str, **query: str | None) -> dict[str, Any]:
        document: dict[str, Any] = self._connection.get(self._path(id, name), query).json()
        return document

    def _post(self, id: str, action: str, body: Mapping[str, Any] | None = None) -> Item:
        return parsed(self._item, self._connection.request("POST", self._path(id, action), json=body))

    @property
    def _list_path(self) -> str:
        return f"/v1/{self._word}s"

    def _path(self, id: str, rest: str = "") -> str:
        return f"{self._list_path}/{quote(id, safe='')}" + (f"/{rest}" if rest else "")


class Jobs(Resource[JobSpec, Job]):
    """The jobs of one server."""

    _word, _id_length, _can_be_retried, _page, _item = "job", len(EXAMPLE_ID), False, JobPage, Job

    def evaluations(self, id: str, *, part: str = "search", after: int = -1) -> Iterator[Evaluation]:
        """A job's candidates on one part of the documents, in the order proposed."""
        following: int | None = after
        while following is not None:
            query = {"part": part, "after": following, "limit": 500}
            page = parsed(EvaluationPage, self._connection.get(self._path(id, "evaluations"), query))
            yield from page.evaluations
            following = page.next

    def factors(self, id: str, format: str = "factors", *, nearest: bool = False) -> dict[str, Any]:
        """The factors that a finished job found, as ``factors`` file or as the JSON that an engine reads.

        Args:
            id: of the job.
            format: ``factors``, or a key of :data:`factor_search.export.registry.ENGINES`.
            nearest: accept the nearest that the format can express.
        """
        return self._document(id, "factors", format=format, **({"nearest": "true"} if nearest else {}))


class Plans(Resource[PlanSpec, Plan]):
    """The plans of one server."""

    _word, _id_length, _can_be_retried, _page, _item = "plan", len(EXAMPLE_PLAN_ID), True, PlanPage, Plan

    def retry(self, id: str, stage: str | None = None) -> Plan:
        """Start a plan that has ended again, at a stage; None is the first that has not finished."""
        return self._post(id, "retry", {"stage": stage})

    def supply_checkpoint(self, id: str, model: str) -> Plan:
        """Give a plan the checkpoint that it waits for: a folder as the server sees it."""
        return self._post(id, "checkpoint", {"model": model})

    def factors(self, id: str, half: str = "long", stage: str | None = None) -> dict[str, Any]:
        """The ``long`` or ``short`` factors for the plan's last model so far, or those of a stage."""
        return self._document(id, "factors", half=half, stage=stage)


def _only(prefix: str, candidates: Iterable[Item], what: str) -> Item:
    """The only one whose id begins with a prefix, among jobs or plans with the newest first.

    Raises:
        NotFoundError: there is none, or more than one.
    """
    found: list[Item] = []
    for candidate in candidates:
        if candidate.id.startswith(prefix):
            found.append(candidate)
        elif found and candidate.id < prefix:
            break  # ids sort by time
    if len(found) == 1:
        return found[0]
    if not found:
        raise NotFoundError(f"no {what}'s id begins with {prefix!r}: factor-search {what}s lists them", 404)
    some = ", ".join(candidate.id for candidate in found[:3])
    raise NotFoundError(f"the ids of {len(found)} {what}s begin with {prefix} ({some}, ...): give more of it", 404)
