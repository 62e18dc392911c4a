"""Webhooks that are to be sent: taken by one coordinator at a time, tried again later, given up."""

from dataclasses import dataclass

from sqlalchemy import delete, or_, select, update

from storage.database import Database
from storage.events import JOB, PLAN, append_events
from storage.schema import deliveries, now

FIRST_SECONDS, LONGEST_SECONDS = 5.0, 3600.0
"""Until the second attempt, and between later ones, which are four times as far apart as those before."""
MOST_ATTEMPTS = 12
"""Then, about six and a half hours after the first, a webhook is given up."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A webhook that is to be sent."""

    id: str
    """Of the message: the same for every attempt."""
    job_id: str | None
    plan_id: str | None
    """Of what it tells: one of the two."""
    url: str
    body: str
    attempts: int
    """Including the present one."""


_COLUMNS = [deliveries.c[name] for name in Delivery.__dataclass_fields__]


class DeliveryStore:
    """The webhooks of one database that are to be sent."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, limit: int, hold_seconds: float) -> list[Delivery]:
        """Take webhooks that are due; new ones first, so that receivers that do not answer hold up nobody.

        Args:
            limit: at most so many.
            hold_seconds: after which they are due again if nothing is said of them, as when this process is killed.
        """
        later = now() + LONGEST_SECONDS + hold_seconds  # of before the clock was set back
        due = or_(deliveries.c.due_at <= now(), deliveries.c.due_at > later)
        with self._database.reading() as connection:
            if connection.execute(select(deliveries.c.id).where(due).limit(1)).first() is None:
                return []
        oldest = select(deliveries.c.id).where(due).order_by(deliveries.c.attempts, deliveries.c.due_at).limit(limit)
        ours = deliveries.c.id.in_(oldest.with_for_update(skip_locked=True))
        taken = update(deliveries).where(ours)
        taken = taken.values(due_at=now() + hold_seconds, attempts=deliveries.c.attempts + 1)
        with self._database.writing() as connection:
            return [Delivery(**row._mapping) for row in connection.execute(taken.returning(*_COLUMNS))]

    def sent(self, delivery: Delivery) -> None:
        """Forget a webhook that was received."""
        with self._database.writing() as connection:
            connection.execute(delete(deliveries).where(deliveries.c.id == delivery.id))

    def failed(self, delivery: Delivery, reason: str, *, again: bool = True) -> None:
        """Try a webhook again later, or give it up with an event.

        Args:
            delivery: the webhook.
            reason: of the failure.
            again: whether another attempt can succeed.
        """
        this = deliveries.c.id == delivery.id
        with self._database.writing() as connection:
            if again and delivery.attempts < MOST_ATTEMPTS:
                wait = min(FIRST_SECONDS * 4.0 ** (delivery.attempts - 1), LONGEST_SECONDS)
                connection.execute(update(deliveries).where(this).values(due_at=now() + wait))
            elif connection.execute(delete(deliveries).where(this)).rowcount:
                data = {"webhook": delivery.id, "attempts": delivery.attempts, "error": reason}
                owner, of = (delivery.job_id, JOB) if delivery.job_id is not None else (delivery.plan_id, PLAN)
                append_events(connection, str(owner), [("webhook_given_up", data)], of)
