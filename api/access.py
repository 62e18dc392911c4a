"""Who may do what: keys and scopes, and what a browser can be tricked into."""

import base64
import binascii
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from api.key_ring import KeyRing, WrongKeys
from api.problems import RefusedError
from api.settings import is_loopback
from storage.keys import ApiKey

PAGE = ("/page", "/jobs", "/plans", "/submit", "/compare")
"""Paths of the web page and its files, beside ``/``; what it shows comes from the REST interface."""
OPEN = ("/healthz", "/readyz", "/docs", "/openapi.json", *PAGE)
"""Paths that need no key, beside ``/``: they reveal nothing about jobs."""
OWN = ("/v1", "/metrics", *OPEN)
"""Paths of the REST interface and of the page; all others belong to the dashboard, where there is one."""
SAFE = ("GET", "HEAD", "OPTIONS")
FORWARDING = (
    *("forwarded", "via", "x-real-ip", "x-client-ip", "client-ip", "true-client-ip", "x-cluster-client-ip"),
    *("x-host", "x-scheme", "x-proxyuser-ip", "x-remote-ip", "x-remote-addr", "x-request-start", "cdn-loop"),
    *("fastly-client-ip", "fly-client-ip", "wl-proxy-client-ip", "proxy-client-ip", "x-amzn-trace-id"),
)
"""Headers by which a request says that it comes through a proxy."""
FORWARDING_PREFIXES = (
    *("x-forwarded", "x-original-", "x-envoy-", "x-cloud-trace-", "x-azure-", "x-appengine-", "x-vercel-", "x-arr-"),
    *("x-nginx-", "x-traefik-", "cf-", "fly-forwarded-", "tailscale-"),
)
MAKE_A_KEY = "make one with: factor-search keys create --name NAME --scope {scope}"


def is_own(path: str) -> bool:
    """Whether a path belongs to the REST interface or the page rather than the dashboard."""
    return _is_within(path, OWN)


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return _is_within(path, OPEN)


def _is_within(path: str, places: tuple[str, ...]) -> bool:
    return path == "/" or path in places or path.startswith(tuple(f"{place}/" for place in places))


def needed_scope(method: str, path: str) -> str | None:
    """The scope that a request needs; None where anybody may."""
    if is_open(path):
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


async def check_key(
    keys: KeyRing, wrong: WrongKeys, headers: Headers, method: str, path: str, *, loopback: bool, address: str
) -> ApiKey | None:
    """The key that allows a request; None where none is needed.

    On loopback none is needed before the first one is made, except to change what the dashboard shows, and for what
    comes from elsewhere: through a proxy, or by a name that is not loopback's, as a page that a browser was led to
    calls us (DNS rebinding).

    Args:
        keys: of the server.
        wrong: what is known of wrong keys.
        headers: of the request.
        method: of the request.
        path: of the request.
        loopback: whether only this machine can reach the server.
        address: of the client.

    Raises:
        RefusedError: a key is missing, unknown, revoked, or not enough.
        DatabaseError: keys cannot be looked up.
    """
    scope = needed_scope(method, path)
    if scope is None:
        return None
    secret = presented_key(headers)
    if secret is None:
        elsewhere = _elsewhere(headers)
        if loopback and elsewhere is None and not await keys.all():
            if scope == "admin":
                raise RefusedError(403, "deleting or changing studies needs a key: " + MAKE_A_KEY.format(scope="admin"))
            return None
        because = f"a key is needed{f', since {elsewhere}' if loopback and elsewhere else ''}"
        detail = f"{because}: send the header Authorization: Bearer KEY; " + MAKE_A_KEY.format(scope=scope)
        raise _unauthorised(detail, headers, is_page=not is_own(path))
    key = await keys.find(secret)
    if key is None:
        await wrong.slow_down(address)
        raise _unauthorised("the key is unknown or revoked", headers, is_page=not is_own(path))
    if not key.allows(scope):
        raise RefusedError(403, f"the key {key.name!r} may {key.scopes[0]}; this needs the scope {scope}")
    return key


def _elsewhere(headers: Headers) -> str | None:
    """Why a request cannot be one of this machine's own; None if it can."""
    for name in headers:
        if name in FORWARDING or name.startswith(FORWARDING_PREFIXES):
            return f"the header {name} says that the request comes through a proxy"
    host = headers.get("host", "")
    return None if is_loopback(_name(host)) else f"the Host header {host[:100]!r} is not this machine's loopback"


def check_origin(headers: Headers, method: str) -> None:
    """Refuse what a foreign web page can make a browser send.

    Raises:
        RefusedError: a page of another origin tries to change something.
    """
    host = headers.get("host", "")
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
