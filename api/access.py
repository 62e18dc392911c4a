"""Who may do what: keys and scopes, and what a browser can be tricked into."""

import base64
import binascii
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from api.problems import RefusedError
from api.settings import is_loopback
from storage.keys import ApiKey, KeyStore

OWN = ("/v1", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json")
"""Paths of the REST interface; all others belong to the dashboard, where there is one."""
OPEN = ("/healthz", "/readyz", "/docs", "/openapi.json")
"""Paths that need no key: they reveal nothing about jobs."""
SAFE = ("GET", "HEAD", "OPTIONS")
MAKE_A_KEY = "make one with: factor-search keys create --name NAME --scope {scope}"


def is_own(path: str) -> bool:
    """Whether a path belongs to the REST interface rather than the dashboard."""
    return path.startswith(tuple(f"{own}/" for own in OWN)) or path in OWN


def needed_scope(method: str, path: str) -> str | None:
    """The scope that a request needs; None where anybody may."""
    if any(path == own or path.startswith(f"{own}/") for own in OPEN):
        return None
    if method in SAFE:
        return "read"
    return "submit" if is_own(path) else "admin"


def presented_key(headers: Headers) -> str | None:
    """The key in a request: as bearer token, or as the password of basic authentication, which browsers can ask for.

    Raises:
        RefusedError: there is an Authorization header of another kind.
    """
    authorization = headers.get("authorization")
    if authorization is None:
        return None
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            pass
    raise _unauthorised("the Authorization header must be: Bearer KEY", headers, is_page=False)


def check_key(keys: KeyStore, headers: Headers, method: str, path: str, *, loopback: bool) -> ApiKey | None:
    """The key that allows a request; None where none is needed.

    On loopback none is needed before the first one is made, except to change what the dashboard shows.

    Raises:
        RefusedError: a key is missing, unknown, revoked, or not enough.
        DatabaseError: keys cannot be looked up.
    """
    scope = needed_scope(method, path)
    if scope is None:
        return None
    secret = presented_key(headers)
    if secret is None:
        if loopback and not keys.list():
            if scope == "admin":
                raise RefusedError(403, "deleting or changing studies needs a key: " + MAKE_A_KEY.format(scope="admin"))
            return None
        detail = "a key is needed: send the header Authorization: Bearer KEY; " + MAKE_A_KEY.format(scope=scope)
        raise _unauthorised(detail, headers, is_page=not is_own(path))
    key = keys.find(secret)
    if key is None:
        raise _unauthorised("the key is unknown or revoked", headers, is_page=not is_own(path))
    if not key.allows(scope):
        raise RefusedError(403, f"the key {key.name!r} may {key.scopes[0]}; this needs the scope {scope}")
    return key


def check_origin(headers: Headers, method: str, *, loopback: bool) -> None:
    """Refuse what a foreign web page can make a browser send.

    Raises:
        RefusedError: a server on loopback is called by a name that is not its own (DNS rebinding), or a page of another
            origin tries to change something.
    """
    host = headers.get("host", "")
    if loopback and not is_loopback(_name(host)):
        raise RefusedError(
            421, f"the Host header is {host!r}, but this server is only for its own machine: use 127.0.0.1"
        )
    if method in SAFE or headers.get("authorization", "").lower().startswith("bearer "):
        return  # no browser adds a bearer key by itself
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        foreign = origin is not None and _netloc(origin) != host
    if foreign:
        raise RefusedError(403, f"a page of another origin ({origin or site}) may not change anything here")


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def _unauthorised(detail: str, headers: Headers, *, is_page: bool) -> RefusedError:
    asks_for_page = is_page or "text/html" in headers.get("accept", "")
    scheme = 'Basic realm="factor-search: the key is the password", charset="UTF-8"' if asks_for_page else "Bearer"
    return RefusedError(401, detail, headers={"WWW-Authenticate": scheme})
