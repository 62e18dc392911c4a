"""What the client can meet.

FactorSearchError
└── ServiceError
    ├── UnreachableError    no server answers, or the connection broke
    ├── UnauthorisedError   a key is missing, unknown or not enough (401, 403)
    ├── NotFoundError       no such job (404)
    └── ConflictError       not possible in the job's present state (409)
"""

from factor_search.errors import FactorSearchError


class ServiceError(FactorSearchError):
    """The server refused a request, or answered what this client does not understand."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status, if there was an answer."""


class UnreachableError(ServiceError):
    """No server answers at the URL, or the connection to it broke."""


class UnauthorisedError(ServiceError):
    """A key is missing, unknown, revoked or not enough."""


class NotFoundError(ServiceError):
    """There is no such job."""


class ConflictError(ServiceError):
    """The request does not fit the job's present state."""


BY_STATUS: dict[int, type[ServiceError]] = {
    401: UnauthorisedError,
    403: UnauthorisedError,
    404: NotFoundError,
    409: ConflictError,
    503: UnreachableError,
}
