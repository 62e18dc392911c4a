"""Plans of one server, for scripts and notebooks: the part of the client that is about them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import quote

from api.client_errors import NotFoundError, UnreachableError
from api.connection import Connection, parsed
from api.plan_schemas import Plan, PlanPage
from api.schemas import Event, Job
from factor_search.plan.spec import PlanSpec

Found = TypeVar("Found", Job, Plan)


class PlanClient:
    """What can be done with plans; ``client.plans`` of a :class:`api.client.Client`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def submit(self, spec: PlanSpec | Mapping[str, Any], idempotency_key: str | None = None) -> Plan:
        """Queue a plan; see :meth:`api.client.Client.submit`."""
        if isinstance(spec, PlanSpec):
            spec = spec.model_dump(mode="json", exclude_unset=True)
        return parsed(Plan, self._connection.submit("/v1/plans", spec, idempotency_key))

    def list(self, *, state: str | None = None, limit: int | None = None) -> Iterator[Plan]:
        """Plans, newest first.

        Args:
            state: only those in this state.
            limit: at most so many; default all.
        """
        pages = self._connection.pages("/v1/plans", PlanPage, lambda page: page.next, state=state, limit=limit)
        return islice((item for page in pages for item in page.plans), limit)

    def get(self, plan_id: str) -> Plan:
        """A plan as it is now."""
        return parsed(Plan, self._connection.get(_path(plan_id)))

    def find(self, prefix: str) -> Plan:
        """The one plan whose id begins so.

        Raises:
            NotFoundError: there is none, or more than one.
        """
        if len(prefix) >= 25 and prefix.isalnum():
            return self.get(prefix)
        return the_one(prefix, self.list() if prefix.isalnum() else (), "plan")

    def pause(self, plan_id: str) -> Plan:
        """Stop a plan so that it can be resumed."""
        return parsed(Plan, self._connection.request("POST", _path(plan_id, "pause")))

    def resume(self, plan_id: str) -> Plan:
        """Let a paused plan go on."""
        return parsed(Plan, self._connection.request("POST", _path(plan_id, "resume")))

    def cancel(self, plan_id: str) -> Plan:
        """End a plan for good."""
        return parsed(Plan, self._connection.request("POST", _path(plan_id, "cancel")))

    def retry(self, plan_id: str, stage: str | None = None) -> Plan:
        """Begin a plan that has ended again, with a stage; None is the first that has not ended well."""
        return parsed(Plan, self._connection.request("POST", _path(plan_id, "retry"), json={"stage": stage}))

    def hand_in(self, plan_id: str, model: str) -> Plan:
        """Give a plan the checkpoint that it waits for: a folder as the server sees it."""
        return parsed(Plan, self._connection.request("POST", _path(plan_id, "checkpoint"), json={"model": model}))

    def events(
        self, plan_id: str, after: int = 0, *, on_interruption: Callable[[UnreachableError], None] | None = None
    ) -> Iterator[Event]:
        """Events of the plan itself, as :meth:`api.client.Client.events` gives those of a job.

        One of kind ``stage_queued`` names the ``job``, whose own events tell the rest.
        """
        return self._connection.follow(
            _path(plan_id, "events"),
            after,
            is_last=lambda event: False,  # one that has ended may be tried again
            is_over=lambda: self.get(plan_id).ended,
            on_interruption=on_interruption,
        )

    def factors(self, plan_id: str, half: str = "long", stage: str | None = None) -> dict[str, Any]:
        """The ``long`` or ``short`` factors for the plan's last model so far, or those of a stage."""
        query = {"half": half, "stage": stage}
        document: dict[str, Any] = self._connection.get(_path(plan_id, "factors"), query).json()
        return document

    def report(self, plan_id: str) -> dict[str, Any]:
        """What each stage gained that has finished."""
        document: dict[str, Any] = self._connection.get(_path(plan_id, "report"), {"format": "json"}).json()
        return document

    def report_html(self, plan_id: str) -> str:
        """The same as a page."""
        return self._connection.get(_path(plan_id, "report"), {"format": "html"}).text


def names_plan(id: str) -> bool:
    """Whether an id, or the beginning of one, is that of a plan; those of jobs are hexadecimal."""
    return id.startswith("p")


def the_one(prefix: str, candidates: Iterable[Found], what: str) -> Found:
    """The one whose id begins so, among jobs or plans with the newest first.

    Raises:
        NotFoundError: there is none, or more than one.
    """
    found: list[Found] = []
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


def _path(plan_id: str, rest: str = "") -> str:
    return f"/v1/plans/{quote(plan_id, safe='')}" + (f"/{rest}" if rest else "")
