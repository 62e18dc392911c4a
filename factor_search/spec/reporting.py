"""To whom a job or plan reports beside its results: trackers of experiments, and webhooks."""

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from factor_search.errors import SpecError
from factor_search.spec.base import Strict
from factor_search.spec.named import Names

TrackerKind = Literal["tensorboard", "mlflow", "wandb"]
WebhookEvent = Literal["finished", "failed", "cancelled", "waiting"]
ALL_EVENTS: tuple[WebhookEvent, ...] = ("finished", "failed", "cancelled", "waiting")
MOST_WEBHOOKS = 8


def _is_empty(value: Any) -> bool:
    return not value


class WebhookSpec(Strict):
    """A request that a service sends when a job or plan ends, or a plan waits for a checkpoint."""

    url: Annotated[str, Names.WEBHOOK] = Field(
        max_length=2000, description="An https address on a host that the operator allows."
    )
    events: list[WebhookEvent] = Field(
        list(ALL_EVENTS), min_length=1, description="Which of them; waiting is of plans that need a checkpoint."
    )

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"it is not an address: {error}") from None
        if parts.scheme not in ("https", "http") or not parts.hostname or port == 0:
            raise ValueError("it is not an address: write https://HOST/PATH")
        if parts.username is not None or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError("an address here has neither user names, fragments nor special characters")
        return url


Trackers = Annotated[
    list[TrackerKind],
    Names.TRACKERS,
    Field(
        max_length=len(TrackerKind.__args__),
        exclude_if=_is_empty,  # earlier versions had none
        description="Show the progress in these, beside the results; destination and credentials are those of the "
        "environment of who runs the search. They have no effect on the result.",
    ),
]
Webhooks = Annotated[
    list[WebhookSpec],
    Field(
        max_length=MOST_WEBHOOKS,
        exclude_if=_is_empty,
        description="Requests that a service sends at the end. They have no effect on the result.",
    ),
]


def check_no_webhooks(webhooks: list[WebhookSpec]) -> None:
    """Refuse webhooks where no service would send them.

    Raises:
        SpecError: there are some.
    """
    if webhooks:
        raise SpecError("webhooks are sent by a service: submit the specification to one, or leave them out")
