"""Webhooks: sent once a state is stored, to allowed hosts on the internet only, signed, given up in time."""

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from api.cli import build_parser
from api.cli.serve import ServeError, check_webhook_secret, coordinator_command, read_policy
from bench.stub import stub_spec
from factor_search.errors import SpecError
from factor_search.plan.spec import parse_plan
from factor_search.spec import parse_spec
from storage import deliveries as deliveries_module
from storage.database import Database
from storage.deliveries import MOST_ATTEMPTS, DeliveryStore
from storage.events import PLAN, read_events
from storage.jobs import JobStore
from storage.plan_steps import PlanSteps
from storage.plans import PlanStore
from storage.retention import RetentionStore
from storage.schema import deliveries
from tests.service import Service
from workers import webhooks
from workers.__main__ import build_parser as coordinator_parser
from workers.policy import Policy
from workers.webhooks import AllowedHosts, WebhookError, WebhookSender, post, read_secret, signature

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "how-to" / "receive-webhooks.md").read_text()
SECRET_TEXT = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
SECRET = base64.b64decode(SECRET_TEXT.removeprefix("whsec_"))


class Received:
    """A receiver on loopback that answers as a test wants."""

    def __init__(self, handler: type[BaseHTTPRequestHandler] | None = None) -> None:
        self.messages: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []
        self.location: str | None = None
        received = self

        class Recording(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.messages.append(({key.lower(): value for key, value in self.headers.items()}, body))
                self.send_response(received.statuses.pop(0) if received.statuses else 204)
                if received.location is not None:
                    self.send_header("Location", received.location)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler or Recording)
        self.port = self.server.server_port
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}/hook?a=b"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def wait(self, count: int, seconds: float = 20.0) -> None:
        until = time.monotonic() + seconds
        while len(self.messages) < count:
            assert time.monotonic() < until, self.messages
            time.sleep(0.02)


@pytest.fixture
def receiver() -> Iterator[Received]:
    received = Received()
    yield received
    received.server.shutdown()
    received.server.server_close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'jobs.db'}" if sqlite else request.getfixturevalue("postgresql_database")
    with Database(url) as opened:
        yield opened


def hooked(url: str, **changes: Any) -> Any:
    return stub_spec(budget=30, webhooks=[{"url": url} | changes])


def ended(database: Database, url: str, *, error: str | None = None, **changes: Any) -> str:
    """The id of a job with a webhook that has ended."""
    jobs = JobStore(database)
    job, _ = jobs.submit(hooked(url, **changes))
    claimed = jobs.claim("me", 60)
    assert claimed is not None
    jobs.end(claimed[1], "failed" if error else "finished", error=error, data={"winner": "found-1"})
    return job.id


def waiting(database: Database) -> list[Any]:
    with database.reading() as connection:
        return list(connection.execute(select(deliveries)))


def make_due(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(update(deliveries).values(due_at=0.0))


def sender(database: Database, *hosts: str) -> WebhookSender:
    return WebhookSender(DeliveryStore(database), AllowedHosts(hosts), SECRET)


def test_the_signature_is_that_of_standard_webhooks() -> None:
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")  # the example of the libraries of Svix
    signed = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, '{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_receiver_of_the_documentation_gets_what_a_service_sends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    names["Receiver"].log_message = lambda *arguments: None
    received = Received(names["Receiver"])
    service = Service(f"sqlite:///{tmp_path / 'jobs.db'}")
    service.policy = replace(service.policy, webhook_hosts=(received.host,))
    printed = ""
    try:
        service.start(workers=2, webhook_secret=SECRET)  # type: ignore[arg-type]
        job, _ = service.jobs.submit(hooked(received.url))
        assert service.wait(job.id) == "finished"
        until = time.monotonic() + 20
        while "job.finished" not in printed and time.monotonic() < until:
            time.sleep(0.1)
            printed += capsys.readouterr().out
        assert printed.split()[0].startswith(f"{job.id}-")
        assert "webhook_given_up" not in service.kinds(job.id)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", received.port)) as forger:
            headers = {"webhook-id": "x", "webhook-timestamp": "1", "webhook-signature": "v1,wrong"}
            forger.request("POST", "/", b"{}", headers)
            assert forger.getresponse().status == 401
    finally:
        service.stop()
        received.server.shutdown()
        received.server.server_close()
        service.database.close()


def test_what_ended_is_sent_once_and_signed(database: Database, receiver: Received) -> None:
    job_id = ended(database, receiver.url)
    for _ in range(3):
        sender(database, receiver.host).round()
    ((headers, body),) = receiver.messages
    assert json.loads(body)["data"] == {"id": job_id, "name": "stub", "state": "finished", "winner": "found-1"}
    assert json.loads(body)["type"] == "job.finished"
    timestamp = int(headers["webhook-timestamp"])
    assert headers["webhook-signature"] == signature(SECRET, headers["webhook-id"], timestamp, body.decode())
    assert abs(timestamp - time.time()) < 60
    assert waiting(database) == []


def test_a_failure_is_sent_again_with_the_same_id_then_given_up(database: Database, receiver: Received) -> None:
    job_id = ended(database, receiver.url, error="x" * 10**6)
    receiver.statuses = [500, 302, 404, *[503] * 20]
    for attempt in range(1, MOST_ATTEMPTS + 1):
        sender(database, receiver.host).round()
        assert len(receiver.messages) == attempt
        sender(database, receiver.host).round()
        assert len(receiver.messages) == attempt, "it is not due yet"
        make_due(database)
    assert {headers["webhook-id"] for headers, _ in receiver.messages} == {receiver.messages[0][0]["webhook-id"]}
    assert all(len(body) < 2000 for _, body in receiver.messages)
    assert waiting(database) == []
    last = read_events(database, job_id)[-1]
    assert (last.kind, last.data["attempts"], last.data["error"]) == (
        "webhook_given_up",
        MOST_ATTEMPTS,
        "it was answered with status 503",
    )
    assert receiver.url not in json.dumps(last.data)


def test_waits_grow_and_end_within_hours() -> None:
    waits = [
        min(deliveries_module.FIRST_SECONDS * 4.0 ** (n - 1), deliveries_module.LONGEST_SECONDS)
        for n in range(1, MOST_ATTEMPTS)
    ]
    assert waits == sorted(waits)
    assert 6 < sum(waits) / 3600 < 7


def test_what_was_taken_by_a_killed_coordinator_is_sent_by_another(database: Database, receiver: Received) -> None:
    ended(database, receiver.url)
    assert len(DeliveryStore(database).take(8, hold_seconds=0.2)) == 1  # and killed
    assert DeliveryStore(database).take(8, hold_seconds=0.2) == []
    time.sleep(0.3)
    sender(database, receiver.host).round()
    assert len(receiver.messages) == 1


def test_a_clock_that_was_set_back_delays_nothing_for_long(database: Database, receiver: Received) -> None:
    ended(database, receiver.url)
    with database.writing() as connection:
        connection.execute(update(deliveries).values(due_at=time.time() + 10**7))
    sender(database, receiver.host).round()
    assert len(receiver.messages) == 1


def test_only_events_that_are_asked_for_are_sent(database: Database) -> None:
    ended(database, "https://a.example/", events=["failed", "waiting"])
    assert waiting(database) == []
    ended(database, "https://a.example/", error="why", events=["failed"])
    (row,) = waiting(database)
    assert json.loads(row.body)["data"]["error"] == "why"


def test_a_plan_that_waits_for_a_checkpoint_says_so(database: Database) -> None:
    stages = [{"kind": "search", "target_length": 512}, {"kind": "await_checkpoint"}]
    document = {"name": "p", "model": "m", "data": ["d"], "stages": stages, "webhooks": [{"url": "https://a.example/"}]}
    plan = parse_plan(document).expanded()
    store = PlanStore(database)
    spec = plan.model_dump(mode="json")
    submitted, _ = store.submit(name="p", spec=spec, stages=[("a", "await_checkpoint")])
    (due,) = PlanSteps(database).due()
    assert PlanSteps(database).wait(due, {})
    (row,) = waiting(database)
    body = json.loads(row.body)
    assert (body["type"], body["data"]["state"], body["data"]["stage"]) == ("plan.waiting", "waiting", "a")
    store.cancel(submitted.id)
    assert sorted(json.loads(row.body)["type"] for row in waiting(database)) == ["plan.cancelled", "plan.waiting"]
    for one in DeliveryStore(database).take(8, 60):
        DeliveryStore(database).failed(one, "no", again=False)
    assert [event.kind for event in read_events(database, submitted.id, of=PLAN)][-2:] == ["webhook_given_up"] * 2


def test_webhooks_go_with_what_they_tell_of(database: Database) -> None:
    job_id = ended(database, "https://a.example/")
    (taken,) = DeliveryStore(database).take(8, 60)
    RetentionStore(database).delete("job", job_id)
    assert waiting(database) == []
    DeliveryStore(database).failed(taken, "too late", again=False)
    DeliveryStore(database).sent(taken)


def test_two_senders_send_once(database: Database, receiver: Received) -> None:
    for _ in range(6):
        ended(database, receiver.url)
    threads = [threading.Thread(target=sender(database, receiver.host).round) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({headers["webhook-id"] for headers, _ in receiver.messages}) == len(receiver.messages) == 6


def test_a_restart_loses_none(tmp_path: Path, receiver: Received) -> None:
    service = Service(f"sqlite:///{tmp_path / 'jobs.db'}")
    service.policy = replace(service.policy, webhook_hosts=(receiver.host,))
    try:
        service.start(workers=2)  # without a secret: nothing is sent
        job, _ = service.jobs.submit(hooked(receiver.url))
        assert service.wait(job.id) == "finished"
        service.stop()
        assert receiver.messages == []
        service.start(workers=2, webhook_secret=SECRET)  # type: ignore[arg-type]
        receiver.wait(1)
    finally:
        service.stop()
        service.database.close()


@pytest.mark.parametrize(
    ("url", "hosts", "reason"),
    [
        ("https://other.example/", ["hooks.example"], "not allowed"),
        ("https://hooks.example.evil/", ["hooks.example"], "not allowed"),
        ("https://hooks.example:8443/", ["hooks.example"], "not allowed"),
        ("https://hooks.example/", ["hooks.example:8443"], "not allowed"),
        ("http://hooks.example/", ["hooks.example"], "need https"),
        ("http://10.0.0.1/", ["10.0.0.1"], "need https"),
        ("http://127.0.0.1:81/", ["127.0.0.1:80"], "not allowed"),
        ("http://localhost/", ["127.0.0.1"], "not allowed"),
        ("http://0x7f.1/", ["127.0.0.1"], "not allowed"),
    ],
)
def test_other_hosts_are_refused_at_submission(url: str, hosts: list[str], reason: str) -> None:
    policy = Policy((Path("/"),), allow_hub=True, allow_remote_code=False, webhook_hosts=tuple(hosts))
    document = {"model": "a/b", "data": ["."], "target_length": 512}
    with pytest.raises(SpecError, match=rf"webhooks\[0\]\.url: .*{reason}") as raised:
        policy.check(parse_spec(document | {"webhooks": [{"url": url}]}))
    assert "\n" not in str(raised.value)
    policy.check(parse_spec(document))


def test_allowed_hosts_are_accepted() -> None:
    hosts = AllowedHosts(("Hooks.Example", "127.0.0.1:8500", "[::1]:1", "localhost"))
    for url in ("https://hooks.example/x", "https://HOOKS.example.:443/", "http://127.0.0.1:8500/", "http://[::1]:1/"):
        hosts.check(url)
    hosts.check("http://localhost/")


PRIVATE = [
    *("10.1.2.3", "172.16.0.1", "192.168.1.1", "127.0.0.1", "127.8.8.8", "169.254.169.254", "0.0.0.0", "100.64.0.1"),
    *("224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "ff02::1"),
    *("::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "2002:a00:1::"),
]


def resolving(*addresses: str) -> Any:
    """Let every name have these addresses."""

    def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        return [(socket.AF_INET6 if ":" in one else socket.AF_INET, 1, 6, "", (one, port)) for one in addresses]

    return mock.patch.object(webhooks.socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_cannot_lead_inside(address: str) -> None:
    hosts = AllowedHosts(("hooks.example", "localhost"))
    parts = hosts.check("https://hooks.example/")
    for addresses in ([address], ["93.184.216.34", address], [address, "2606:2800:220:1::1"]):
        with resolving(*addresses), pytest.raises(WebhookError, match="not an address of the internet"):
            hosts.resolve(parts)
    with resolving("93.184.216.34", "2606:2800:220:1::1"):
        assert hosts.resolve(parts) == ("93.184.216.34", 443)


def test_an_address_inside_that_the_operator_names_is_allowed() -> None:
    hosts = AllowedHosts(("hooks.lan", "10.1.2.3", "localhost:9"))
    with resolving("10.1.2.3"):
        assert hosts.resolve(hosts.check("https://hooks.lan/")) == ("10.1.2.3", 443)
    with resolving("127.0.0.1"):
        assert hosts.resolve(hosts.check("http://localhost:9/")) == ("127.0.0.1", 9)
    with resolving("10.1.2.4"), pytest.raises(WebhookError, match=r"hooks\.lan is at 10"):
        hosts.resolve(hosts.check("https://hooks.lan/"))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["{}", "::ffff:{}", "64:ff9b::{}"]))
def test_no_form_of_a_private_address_passes(number: int, form: str) -> None:
    import ipaddress

    address = ipaddress.IPv4Address(number)
    hosts = AllowedHosts(("hooks.example",))
    public = address.is_global and not address.is_multicast
    with resolving(form.format(address)), contextlib.ExitStack() as stack:
        if not public:
            stack.enter_context(pytest.raises(WebhookError))
        hosts.resolve(hosts.check("https://hooks.example/"))


def test_a_host_that_changes_its_address_is_checked_at_every_attempt(database: Database) -> None:
    job_id = ended(database, "https://hooks.example/")
    connect = mock.Mock(side_effect=AssertionError("nobody connects"))
    with resolving("169.254.169.254"), mock.patch.object(webhooks.socket, "create_connection", connect):
        for _ in range(MOST_ATTEMPTS):
            sender(database, "hooks.example").round()
            make_due(database)
    connect.assert_not_called()
    assert "169.254.169.254" in read_events(database, job_id)[-1].data["error"]


@pytest.mark.parametrize("url", ["https://hooks.example/", "http://hooks.lan/"])
def test_a_host_that_is_allowed_no_more_is_given_up_at_once(database: Database, url: str) -> None:
    job_id = ended(database, url)
    sender(database, "other.example", "hooks.lan").round()
    assert waiting(database) == []
    last = read_events(database, job_id)[-1]
    assert (last.kind, last.data["attempts"]) == ("webhook_given_up", 1)
    assert "not allowed here" in last.data["error"] or "need https" in last.data["error"]


def test_the_connection_goes_to_the_address_that_was_checked(receiver: Received) -> None:
    hosts = AllowedHosts((f"localhost:{receiver.port}",))
    parts = hosts.check(f"http://localhost:{receiver.port}/a?b=c")
    with mock.patch.object(webhooks.socket, "getaddrinfo", side_effect=AssertionError("looked up again")):
        connected = socket.socket()
        connected.connect(("127.0.0.1", receiver.port))
        with mock.patch.object(webhooks.socket, "create_connection", return_value=connected) as connect:
            assert post(parts, ("127.0.0.1", receiver.port), {"webhook-id": "x"}, "{}") == 204
    assert connect.call_args[0][0] == ("127.0.0.1", receiver.port)
    assert receiver.messages[0][0]["host"] == f"localhost:{receiver.port}"


def test_redirects_are_not_followed(database: Database, receiver: Received) -> None:
    inside = Received()
    receiver.location, receiver.statuses = inside.url, [307, 308, 301]
    ended(database, receiver.url)
    for _ in range(3):
        sender(database, receiver.host, inside.host).round()
        make_due(database)
    assert len(receiver.messages) == 3
    assert inside.messages == []
    inside.server.shutdown()
    inside.server.server_close()


def drip(connection: socket.socket) -> None:
    """Answer one byte at a time, without end."""
    with contextlib.suppress(OSError), connection:
        connection.sendall(b"HTTP/1.1 ")
        while True:
            connection.sendall(b"2")
            time.sleep(0.05)


def silent(connection: socket.socket) -> None:
    """Wait until the other end gives up."""
    with contextlib.suppress(OSError), connection:
        while connection.recv(1024):
            pass


@contextlib.contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A receiver on loopback, as HOST:PORT, with a function for each connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)  # wakes its thread
    listener.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 with its key, in one file."""
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", *name]
    subprocess.run([*new, "-keyout", file, "-out", f"{file}.crt"], check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


def by_tls(answer: Callable[[socket.socket], None], certificate: Path) -> Callable[[socket.socket], None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            answer(context.wrap_socket(connection, server_side=True))

    return serve


def answered(connection: socket.socket) -> None:
    """Answer as a receiver does."""
    received = b""
    with connection:
        while not received.endswith(b"{}"):
            received += connection.recv(65536)
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")


def drip_handshake(connection: socket.socket) -> None:
    """Begin a record of TLS, one byte at a time, without end."""
    with contextlib.suppress(OSError), connection:
        connection.sendall(b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb")
        while True:
            connection.sendall(b"\x00")
            time.sleep(0.05)


@pytest.mark.parametrize("answer", [drip, silent, drip_handshake])
def test_an_attempt_by_https_ends_in_time_and_leaves_nothing(
    answer: Callable[[socket.socket], None], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with answering(by_tls(answered, certificate)) as place:
        parts = AllowedHosts((place,)).check(f"https://{place}/a")
        assert post(parts, ("127.0.0.1", int(place.rpartition(":")[2])), {"webhook-id": "x"}, "{}") == 204
    with (
        answering(answer if answer is drip_handshake else by_tls(answer, certificate)) as place,
        mock.patch.object(webhooks, "ATTEMPT_SECONDS", 0.5),
    ):
        parts = AllowedHosts((place,)).check(f"https://{place}/a")
        before, began = len(os.listdir("/proc/self/fd")), time.monotonic()
        with pytest.raises((OSError, http.client.HTTPException)):
            post(parts, ("127.0.0.1", int(place.rpartition(":")[2])), {"webhook-id": "x"}, "{}")
        assert time.monotonic() - began < 3
        until = time.monotonic() + 5
        while len(os.listdir("/proc/self/fd")) > before or any(
            isinstance(thread, threading.Timer) for thread in threading.enumerate()
        ):  # the receiver closes its own too, and a timer takes a moment
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.parametrize("answer", [drip, silent])
def test_a_receiver_cannot_hold_up_the_others(
    answer: Callable[[socket.socket], None], tmp_path: Path, receiver: Received
) -> None:
    with (
        answering(answer) as slow,
        Database(f"sqlite:///{tmp_path / 'jobs.db'}") as database,
        mock.patch.multiple(webhooks, ATTEMPT_SECONDS=0.5, AT_ONCE=2),
    ):
        for _ in range(2):
            ended(database, f"http://{slow}/")
        began = time.monotonic()
        sender(database, slow, receiver.host).round()
        ended(database, receiver.url)
        sender(database, slow, receiver.host).round()
        assert time.monotonic() - began < 5
        assert len(receiver.messages) == 1
        assert sorted(row.attempts for row in waiting(database)) == [1, 1]


@settings(max_examples=20, deadline=None)
@given(st.text(), st.integers(0, 2**40))
def test_signatures_depend_on_everything(body: str, timestamp: int) -> None:
    body = body.encode("utf-8", "replace").decode()
    signed = signature(SECRET, "id", timestamp, body)
    others = [
        signature(SECRET, "other", timestamp, body),
        signature(SECRET, "id", timestamp + 1, body),
        signature(SECRET, "id", timestamp, body + " "),
        signature(hashlib.sha256(SECRET).digest(), "id", timestamp, body),
    ]
    assert signed not in others
    assert signed == signature(SECRET, "id", timestamp, body)


def test_the_secret_comes_from_a_file_or_leaves_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET_TEXT}\n")
    monkeypatch.setenv(webhooks.SECRET_VARIABLE, SECRET_TEXT)
    assert read_secret(None) == SECRET
    assert webhooks.SECRET_VARIABLE not in os.environ
    assert read_secret(file) == SECRET
    assert read_secret(None) is None


@pytest.mark.parametrize(
    "wrong", ["secret", "whsec_", "whsec_c2hvcnQ=", "whsec_***", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]
)
def test_what_is_not_a_secret_is_refused_and_not_shown(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(webhooks.SECRET_VARIABLE, wrong)
    with pytest.raises(SpecError, match="is not a secret") as raised:
        read_secret(None)
    assert wrong.removeprefix("whsec_") == "" or wrong not in str(raised.value).replace("is not a secret", "")


@pytest.mark.parametrize("wrong", ["", "a/b", "https://a", "a:b", "a b", "u@a", ":80", "a:99999", "é"])
def test_what_is_not_a_host_is_refused(wrong: str) -> None:
    with pytest.raises(SpecError, match="--webhook-host"):
        AllowedHosts((wrong,))


def test_a_server_without_a_secret_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(webhooks.SECRET_VARIABLE, raising=False)
    policy = Policy((Path("/"),), allow_hub=False, allow_remote_code=False, webhook_hosts=("a.example",))
    arguments = mock.Mock(no_coordinator=False, webhook_secret_file=None)
    with pytest.raises(ServeError, match="--webhook-secret-file"):
        check_webhook_secret(policy, arguments)
    monkeypatch.setenv(webhooks.SECRET_VARIABLE, SECRET_TEXT)
    check_webhook_secret(policy, arguments)
    assert os.environ[webhooks.SECRET_VARIABLE] == SECRET_TEXT, "the coordinator needs it"


def test_webhooks_leave_identities_and_reports_as_they_were() -> None:
    plain, hook = stub_spec(), stub_spec(webhooks=[{"url": "https://a.example/token"}])
    assert plain.sha256 == hook.sha256
    assert "webhooks" not in plain.model_dump(mode="json")
    assert parse_spec(hook.model_dump(mode="json")) == hook


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "ftp://a.example/"},
        {"url": "https://"},
        {"url": "https://user:password@a.example/"},
        {"url": "https://a.example/#x"},
        {"url": "https://a.example/\n"},
        {"url": "https://a.example/ x"},
        {"url": "https://a.example:0/"},
        {"url": "https://[::1/"},
        {"url": "https://a.example/" + "x" * 2000},
        {"url": "https://a.example/", "events": []},
        {"url": "https://a.example/", "events": ["started"]},
        {},
        "https://a.example/",
    ],
)
def test_what_is_not_a_webhook_is_refused(wrong: Any) -> None:
    with pytest.raises(SpecError, match="webhooks"):
        stub_spec(webhooks=[wrong])
    with pytest.raises(SpecError, match="webhooks"):
        stub_spec(webhooks=[{"url": "https://a.example/"}] * 9)


def test_a_search_in_this_process_refuses_them(tmp_path: Path) -> None:
    import factor_search as fs

    for out in (None, tmp_path / "out"):
        with pytest.raises(SpecError, match="webhooks are sent by a service"):
            fs.search_factors("m", "d", 128, out=out, webhooks=[{"url": "https://a.example/"}])


def test_hosts_and_trackers_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACTOR_SEARCH_WEBHOOK_HOST", "a.example,127.0.0.1:8500")
    monkeypatch.setenv("FACTOR_SEARCH_TRACKER", "comet")
    with pytest.raises(SpecError, match="--tracker 'comet' is unknown"):
        read_policy(build_parser("serve").parse_args(["serve"]), hub=True)
    monkeypatch.delenv("FACTOR_SEARCH_TRACKER")
    arguments = build_parser("serve").parse_args(["serve", "--webhook-secret-file", "secret"])
    policy = read_policy(arguments, hub=True)
    assert policy.webhook_hosts == ("a.example", "127.0.0.1:8500")
    parsed = coordinator_parser().parse_args([*coordinator_command(arguments, policy)[4:], "--database", "sqlite://"])
    assert Policy.from_arguments(parsed, hub=False) == policy
    assert parsed.webhook_secret_file == Path("secret")
