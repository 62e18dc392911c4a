"""The web page in a real browser: submit, watch, steer, download, compare, supply a checkpoint; and who cannot see.

One server and one browser for all. After each test nothing may have been said on the browser's console, and no request
may have been made to another server.
"""

import contextlib
import json
import random
import re
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from api.app import create_app
from api.cli import build_parser
from api.cli.specification import specification
from api.dashboard import Dashboard
from api.examples import ESTIMATE
from api.routes import page
from bench.dashboard import CHROMIUM_ARGUMENTS, chromium, record_search
from bench.dashboard import prepared as prepared_search
from factor_search.measure.evaluation import OK
from factor_search.plan.kinds.search import SearchWork
from factor_search.plan.spec import parse_plan
from factor_search.spec import parse_spec
from storage.dashboard.address import optuna_url_beside
from storage.database import Database
from storage.errors import ConflictError
from storage.evaluations import Batch, Candidate, EvaluationStore
from storage.jobs import JobStore, Lease
from storage.keys import KeyStore
from storage.plan_steps import PlanSteps
from storage.plans import PlanStore
from tests.records import candidate, computed
from tests.rest_service import PLAN, SPEC, FakeCoordinator, progress, serving, settings
from tests.service import Service
from tests.test_page import finished
from tests.test_plan_checkpoint import awaiting
from workers.model_worker import ModelWorker
from workers.policy import Policy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TIMEOUT_MS = 60_000
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
HOSTILE = "<img src=x onerror=\"document.title='ran'\">"
DRAWN = "() => document.querySelectorAll('.js-plotly-plot .main-svg').length >= 2"


@dataclass
class Site:
    """A server with a page of a browser on it."""

    url: str
    app: FastAPI
    folder: Path
    page: Any
    context: Any
    said: list[str] = field(default_factory=list)
    """On the console, and by scripts that failed."""
    elsewhere: list[str] = field(default_factory=list)
    """Requests to other servers."""

    @property
    def database_url(self) -> str:
        return settings(self.folder).database_url

    def open(self, path: str) -> None:
        self.page.goto(self.url + path)
        self.page.wait_for_selector("h1")

    def see(self, text: str) -> None:
        """Wait until a text is shown."""
        self.page.get_by_text(text).first.wait_for()

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def focused(self) -> str:
        text: str = self.page.evaluate("document.activeElement.textContent || document.activeElement.tagName")
        return text.strip()


@pytest.fixture(scope="module")
def whole_site(checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    executable = chromium()
    if executable is None:
        pytest.skip("there is no Chromium here: install it, or name it in CHROMIUM, to test the web page")
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("site")
    policy = Policy((Path("/"),), allow_hub=True, allow_remote_code=False, work_folder=folder / "made")
    optuna_url = optuna_url_beside(settings(folder).database_url)
    app = create_app(settings(folder, policy=policy, optuna_url=optuna_url), Dashboard(optuna_url))
    with serving(app) as url, tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=executable,
            headless=True,
            args=CHROMIUM_ARGUMENTS,
            viewport=DESKTOP,
            accept_downloads=True,
            reduced_motion="reduce",
        )
        context.set_default_timeout(TIMEOUT_MS)
        site = Site(url, app, folder, context.new_page(), context)
        site.page.on("console", lambda message: site.said.append(f"{message.type}: {message.text}"))
        site.page.on("pageerror", lambda error: site.said.append(f"error: {error}"))
        context.on("request", lambda request: None if own(request.url, url) else site.elsewhere.append(request.url))
        yield site
        context.close()


def cancel_all(site: Site) -> None:
    """Whoever claims a job afterwards gets one of the test."""
    with Database(site.database_url) as database:
        for store in (PlanStore(database), JobStore(database)):
            for state in ("queued", "running", "waiting", "paused"):
                for one in store.list(state=state, limit=200):
                    with contextlib.suppress(ConflictError):  # a stage of a plan
                        store.cancel(one.id)


def own(address: str, url: str) -> bool:
    return address.startswith((f"{url}/", "data:", f"blob:{url}/"))


@pytest.fixture
def site(whole_site: Site) -> Iterator[Site]:
    cancel_all(whole_site)
    whole_site.said.clear()
    whole_site.page.set_viewport_size(DESKTOP)
    yield whole_site
    assert not whole_site.said
    assert not whole_site.elsewhere


@pytest.fixture
def coordinator(whole_site: Site) -> Iterator[FakeCoordinator]:
    with FakeCoordinator(whole_site.database_url) as coordinator:
        yield coordinator


def expect_refusal(site: Site, status: int) -> None:
    """Browsers write each answer of an error to the console; it was asked for here."""
    assert site.said
    assert all(f"status of {status}" in said for said in site.said), site.said
    site.said.clear()


def submitted(site: Site, **changes: Any) -> str:
    with Database(site.database_url) as database:
        return JobStore(database).submit(parse_spec(SPEC | changes))[0].id


def check_accessible(site: Site, what: str) -> None:
    """Axe finds nothing serious, light or dark, and nothing is cut off at the width of a phone."""
    from axe_playwright_python.sync_playwright import Axe

    for scheme in ("light", "dark"):
        site.page.emulate_media(color_scheme=scheme)
        found = Axe().run(site.page, options={"resultTypes": ["violations"]}).response["violations"]
        serious = [
            (one["id"], node["html"][:200], node["failureSummary"][:300])
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]
        assert not serious, (what, scheme)
    site.page.emulate_media(color_scheme="light")
    site.page.set_viewport_size(PHONE)
    site.page.wait_for_timeout(300)
    assert site.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], what
    site.page.set_viewport_size(DESKTOP)


def test_events_are_shown_as_they_happen(site: Site, coordinator: FakeCoordinator) -> None:
    job = submitted(site, name="live")
    site.open(f"/jobs/{job}")
    site.page.wait_for_selector(".state.queued")
    lease = coordinator.claim()
    site.page.wait_for_selector(".state.running")
    asked: list[str] = []
    site.page.on("request", lambda request: asked.append(request.url))
    for generation in range(2):
        coordinator.generation(lease, generation)
        site.page.wait_for_function(
            "count => document.body.innerText.includes(`${count} of 16`)", arg=4 * (generation + 1)
        )
        site.page.locator(".bars", has_text=f"{2 * (generation + 1)}").first.wait_for()
    site.see("5.2500")
    site.see("6.5000 (yarn)")
    courses = [url for url in asked if "/course?" in url]
    assert courses
    assert not any("after=-1" in url for url in courses[1:]), "only what is new is asked for"
    coordinator.jobs.end(lease, "failed", error=f"it failed: {HOSTILE}")
    site.page.wait_for_selector(".state.failed")
    site.see(f"it failed: {HOSTILE}")


def test_a_broken_stream_is_continued_where_it_broke(site: Site, coordinator: FakeCoordinator) -> None:
    job = submitted(site, name="broken off")
    lease = coordinator.claim()
    site.open(f"/jobs/{job}")
    site.page.get_by_text("live", exact=True).wait_for()
    asked: list[str | None] = []
    site.page.on(
        "request", lambda one: asked.append(one.header_value("last-event-id")) if "/events" in one.url else None
    )
    streams = site.app.state.streams
    streams.closing.set()
    site.see("connecting again")
    coordinator.generation(lease, 0)
    coordinator.event(lease, "worker_lost", worker=HOSTILE)
    streams.closing.clear()
    site.see("worker lost")
    site.see("4 of 16")
    assert asked
    assert set(asked) == {"2"}
    site.page.get_by_text("live", exact=True).wait_for()
    assert site.page.locator(".events li").count() == 4, "each event once"


def test_a_closed_form_is_drawn_as_soon_as_it_is_evaluated(site: Site, coordinator: FakeCoordinator) -> None:
    """Workers begin the candidates of the first generation one after the other, closed forms among them."""
    forms = {"yarn": proposed(0), "ntk": proposed(2), "none": proposed(3)}
    prepared = {
        "closed_forms": {name: one.factors.as_json() for name, one in forms.items()},
        "documents": {"search": ["a", "b"]},
    }
    job = submitted(site, name="forms")
    lease = coordinator.claim(prepared)
    record(coordinator, lease, proposed(0), (1.5, 1.25))
    site.open(f"/jobs/{job}")
    tables = {title: opened_table(site, title) for title in ("Perplexity against tokens spent", "Perplexity by length")}
    for table in tables.values():
        table.get_by_text("yarn", exact=True).wait_for()
    best = site.page.get_by_role("img", name=re.compile("the best closed form, yarn, has 3.9"))
    best.wait_for()
    for number, loss, name in ((2, 1.75, "ntk"), (3, 1.0, "none")):
        record(coordinator, lease, proposed(number), (loss, loss))
        for table in tables.values():
            table.get_by_text(name, exact=True).wait_for()
    site.page.get_by_role("img", name=re.compile("the best closed form, none, has 2.7183")).wait_for()
    titles = ("Rescale factors", "Perplexity against tokens spent", "Perplexity by length")
    for name in forms:
        assert len({stroke(site, title, name) for title in titles}) == 1, "a form looks the same in all charts"
    assert len({stroke(site, titles[0], name) for name in forms}) == len(forms)
    record(coordinator, lease, proposed(1), (2.0, 2.0))
    record(coordinator, lease, proposed(4), (2.0, 2.0))
    search = site.page.get_by_role("img", name=re.compile("^Perplexity against tokens spent. 5 candidates"))
    search.wait_for()
    asked: list[str] = []
    site.page.on("request", lambda one: asked.append(one.url) if "/course?" in one.url else None)
    record(coordinator, lease, proposed(5), (2.0, 2.0))
    site.page.get_by_role("img", name=re.compile("^Perplexity against tokens spent. 6 candidates")).wait_for()
    assert asked
    assert not any("after=-1" in url for url in asked), "all forms are known"


def proposed(number: int) -> Candidate:
    """Candidates of a job of its own, for evaluations are shared by jobs."""
    return replace(candidate(number), key=f"forms{number}".rjust(64, "0"))


def record(coordinator: FakeCoordinator, lease: Lease, one: Candidate, losses: tuple[float, ...]) -> None:
    batch = Batch(started=[one], computed=[computed(one, OK, losses)], done=[(one, OK, False)])
    batch.events = [("progress", progress(one.generation))]
    assert coordinator.evaluations.record({lease: batch}).lost == []


def opened_table(site: Site, title: str) -> Any:
    figure = site.page.locator("figure", has=site.page.get_by_role("heading", name=title))
    figure.get_by_text("The figures as a table").click()
    return figure.locator("table")


def stroke(site: Site, title: str, name: str) -> tuple[str | None, str | None]:
    """Colour and dash of a curve in the legend of a chart."""
    entry = site.page.get_by_role("list", name=f"Curves of {title}").get_by_text(name, exact=True).locator("line")
    return entry.get_attribute("stroke"), entry.get_attribute("stroke-dasharray")


def failing(site: Site, address: str) -> None:
    """The server is away for what is asked for there, until all routes are taken away."""
    site.page.route(address, lambda route: route.fulfill(status=503, json={"detail": "it is started again"}))


def test_what_failed_is_asked_for_again_and_the_stream_continues(site: Site, coordinator: FakeCoordinator) -> None:
    job = submitted(site, name="restarted")
    site.open(f"/jobs/{job}")
    site.page.get_by_text("live", exact=True).wait_for()
    failing(site, f"**/v1/jobs/{job}")
    lease = coordinator.claim()
    site.see("it is started again")
    site.page.unroute_all()
    site.page.wait_for_selector(".state.running")
    site.page.wait_for_selector(".problem", state="detached")
    failing(site, "**/course?*")
    coordinator.generation(lease, 0)
    site.see("4 of 16")
    site.see("it is started again")
    site.page.unroute_all()
    site.page.locator(".bars", has_text="pruned").wait_for()
    site.page.wait_for_selector(".problem", state="detached")
    coordinator.generation(lease, 1)
    site.see("8 of 16")
    expect_refusal(site, 503)


def test_a_stream_that_has_ended_for_good_is_not_called_live(site: Site) -> None:
    job = submitted(site, name="without events")
    site.open(f"/jobs/{job}")
    site.page.get_by_text("live", exact=True).wait_for()
    site.page.route("**/events", lambda route: route.fulfill(status=404, json={"detail": "it is gone"}))
    site.app.state.streams.closing.set()
    try:
        site.see("it is gone")
    finally:
        site.app.state.streams.closing.clear()
    for word in ("live", "connecting again …"):
        assert not site.page.get_by_text(word, exact=True).count()
    site.page.unroute_all()
    expect_refusal(site, 404)


def test_a_chart_keeps_to_its_figure_when_another_is_shown_beside_it(site: Site, coordinator: FakeCoordinator) -> None:
    job = submitted(site, name="narrower")
    forms = {"closed_forms": {"yarn": proposed(0).factors.as_json()}, "documents": {"search": ["a", "b"]}}
    lease = coordinator.claim(forms)
    site.open(f"/jobs/{job}")
    figure = site.page.locator("figure", has=site.page.get_by_role("heading", name="Rescale factors"))
    drawing = figure.locator(".main-svg").first
    drawing.wait_for()
    assert drawing.bounding_box()["width"] > 1000, "it is alone"
    coordinator.generation(lease, 0)
    site.page.locator("figure", has_text="Perplexity against tokens spent").locator(".main-svg").first.wait_for()
    site.page.wait_for_timeout(300)
    assert drawing.bounding_box()["width"] < figure.bounding_box()["width"] < 700


def test_figures_of_events_have_units(site: Site, coordinator: FakeCoordinator) -> None:
    job = submitted(site, name="told")
    lease = coordinator.claim()
    coordinator.event(lease, "estimate", tokens=192191, seconds=238.47144865321883, peak_memory=492335514, workers=1)
    coordinator.event(lease, "phase", phase="validation")
    site.open(f"/jobs/{job}")
    site.see("tokens: 192,191, seconds: 3 min 58 s, peak memory: 492 MB, workers: 1")
    assert site.page.locator(".events li", has_text="phase").inner_text().endswith("phase validation")


def test_a_plan_continues_after_a_failed_request(site: Site) -> None:
    with Database(site.database_url) as database:
        plan, _ = PlanStore(database).submit(name="plan", spec=PLAN, stages=[("tuned", "await_checkpoint")])
    site.open(f"/plans/{plan.id}")
    site.page.get_by_text("live", exact=True).wait_for()
    failing(site, f"**/v1/plans/{plan.id}")
    with Database(site.database_url) as database:
        PlanStore(database).pause(plan.id)
    site.see("it is started again")
    site.page.unroute_all()
    site.page.wait_for_selector(".state.paused")
    site.page.wait_for_selector(".problem", state="detached")
    with Database(site.database_url) as database:
        PlanStore(database).cancel(plan.id)
    site.page.wait_for_selector(".state.cancelled")
    expect_refusal(site, 503)


def test_who_has_scrolled_meanwhile_stays_there(site: Site, coordinator: FakeCoordinator) -> None:
    job = submitted(site, name="a job with charts")
    coordinator.generation(coordinator.claim(), 0)
    site.open("/")
    held: list[Any] = []
    site.page.route("**/course?*", lambda route: held.append(route))
    site.page.set_viewport_size({"width": 360, "height": 300})
    site.page.get_by_role("link", name="a job with charts").first.click()
    site.page.wait_for_url(f"{site.url}/jobs/{job}")
    site.page.wait_for_function("() => document.title === 'a job with charts · factor-search'")
    assert site.page.evaluate("document.activeElement.id") == "content"
    site.page.evaluate("scrollTo(0, 200)")
    site.button("Keep").focus()
    before = site.page.evaluate("scrollY")
    assert before > 0
    for route in held:
        route.continue_()
    site.page.unroute_all()
    site.page.locator(".bars", has_text="pruned").wait_for()
    site.page.wait_for_timeout(700)
    assert site.page.evaluate("scrollY") == before
    assert site.focused() == "Keep"


def test_lists_are_asked_for_once_however_often_the_tab_is_shown(site: Site) -> None:
    submitted(site, name="queued")
    site.open("/")
    site.page.locator("tbody tr").first.wait_for()
    asked: list[str] = []
    site.page.on("request", lambda one: asked.append(one.url) if "/v1/jobs?" in one.url else None)
    site.page.evaluate("for (let i = 0; i < 5; i++) document.dispatchEvent(new Event('visibilitychange'))")
    site.page.wait_for_timeout(4500)
    assert 1 <= len(asked) <= 3, "at once, and after three seconds"


def test_a_late_answer_does_not_undo_a_choice(site: Site) -> None:
    job = submitted(site, name="paused one")
    submitted(site, name="queued one", seed=1)
    with Database(site.database_url) as database:
        JobStore(database).pause(job)
    site.open("/")
    section = site.page.get_by_role("region", name="Jobs", exact=True)
    section.get_by_role("link", name="queued one").first.wait_for()
    held: list[Any] = []
    site.page.route(lambda url: "/v1/jobs?" in url and "state=" not in url, lambda route: held.append(route))
    site.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    while not held:
        site.page.wait_for_timeout(20)
    section.get_by_label("State").select_option("paused")
    section.get_by_role("link", name="queued one").first.wait_for(state="detached")
    for route in held:
        route.continue_()
    site.page.unroute_all()
    site.page.wait_for_timeout(500)
    assert set(section.locator(".state").all_inner_texts()) == {"paused"}


ODD: dict[str, list[Any]] = {
    "racing": [True, False, None, {"error_rate": 0.05}, {}],
    "budget": [7, {"candidates": None, "tokens": 10**6}, {"no_improvement": 3}],
    "strategy": ["cma", {"kind": "evolution", "population": 8}, {"kind": "auto"}],
    "objective": ["needle", {"kind": "perplexity", "stride": 64, "tokens": None}],
    "space": [
        {"attention_factor": "search"},
        {"attention_factor": 1.5, "monotone": False},
        {"critical_dimension": None},
    ],
    "warm_start": [{"files": []}, {"files": ["a.json"]}, {"rescale_factors": [[1.0, 2.0]]}],
    "data": ["x.txt", ["x.txt", "y.txt"], {"dataset": "some/data", "split": "test"}, {"files": ["a\nb.txt"]}],
    "model": ["m", {"id": "m", "trust_remote_code": True, "dtype": "auto", "original_length": 512}],
    "baselines": [["yarn", "ntk"], None],
    "trackers": [["mlflow"], []],
    "seed": [0, 5],
    "name": ["a name", " with spaces "],
    "webhooks": [[{"url": "https://example.org", "events": ["finished"]}], []],
    "resources": [{"workers": 2}, {}],
}
"""Valid values, some of them hard to show in a form."""


def test_a_specification_is_the_same_after_it_was_in_the_form_or_it_stays_json(site: Site) -> None:
    site.page.route("**/v1/estimate", lambda route: route.fulfill(json=ESTIMATE))
    site.open("/submit")
    draw, json_field, refused = random.Random(3), site.page.locator("textarea.json"), 0
    site.button("Edit as JSON").click()
    for number in range(40):
        keys = ["racing"] if number < 5 else draw.sample(list(ODD), 4)
        values = {key: ODD[key][number] if number < 5 else draw.choice(ODD[key]) for key in keys}
        given = {"model": "some/model", "data": ["a.txt"], "target_length": 4096} | values
        json_field.fill(json.dumps(given))
        site.button("Edit in the form").click()
        if site.button("Edit in the form").is_visible():
            refused += 1
            site.see("The form cannot show")
            assert json.loads(json_field.input_value()) == given
            continue
        site.button("Edit as JSON").click()
        assert parse_spec(json.loads(json_field.input_value())) == parse_spec(given), given
    assert 0 < refused < 25
    for wrong, said in (({"sead": 1}, "sead"), ({"budget": {"candidates": 3, "x": 3}}, "budget.x"), ([1], "an object")):
        json_field.fill(json.dumps({"model": "m", "data": "x", "target_length": 9} | wrong if wrong != [1] else wrong))
        site.button("Edit in the form").click()
        site.page.get_by_role("alert").get_by_text(said).wait_for()
    site.page.unroute_all()


def test_without_the_chart_library_there_are_tables(
    site: Site, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_charts", lambda: None)
    monkeypatch.setattr(page, "_index", page._index.__wrapped__)
    job = submitted(site, name="no charts")
    coordinator.generation(coordinator.claim(), 0)
    site.open(f"/jobs/{job}")
    site.see("pip install plotly")
    site.page.get_by_role("region", name="Perplexity against tokens spent").locator("tbody tr").first.wait_for()


def test_names_of_others_stay_text(site: Site, coordinator: FakeCoordinator) -> None:
    job = submitted(site, name=HOSTILE, model=f"models/{HOSTILE}", data={"files": [f"{HOSTILE}.txt"]})
    with Database(site.database_url) as database:
        PlanStore(database).submit(name=HOSTILE, spec=PLAN, stages=[(HOSTILE, "await_checkpoint")])
        JobStore(database).cancel(job)
    for path in ("/", f"/jobs/{job}", f"/compare?jobs={job},{submitted(site, name=HOSTILE, seed=1)}"):
        site.open(path)
        site.see(HOSTILE)
    site.open("/")
    site.page.get_by_role("region", name="Plans").get_by_role("link", name=HOSTILE).first.click()
    site.page.wait_for_selector(".chain")
    site.see(HOSTILE)
    assert site.page.evaluate("document.querySelectorAll('main img').length") == 0
    assert site.page.title() != "ran"


def test_steered_with_the_keyboard_alone(site: Site) -> None:
    job = submitted(site, name="steered")
    site.open(f"/jobs/{job}")
    site.button("Pause").focus()
    site.page.keyboard.press("Enter")
    site.page.wait_for_selector(".state.paused")
    site.page.wait_for_function("() => document.activeElement.textContent === 'Resume'")
    site.page.keyboard.press("Enter")
    site.page.wait_for_selector(".state.queued")
    site.button("Keep").focus()
    site.page.keyboard.press("Enter")
    site.page.wait_for_selector("dialog[open]")
    site.page.keyboard.press("Escape")
    site.page.wait_for_selector("dialog", state="detached")
    assert site.focused() == "Keep", "the focus returns"
    site.page.keyboard.press("Enter")
    site.page.keyboard.type("for the paper")
    site.page.keyboard.press("Enter")
    site.button("Keep no longer").wait_for()
    site.button("Cancel").focus()
    site.page.keyboard.press("Enter")
    site.button("Cancel it").press("Enter")
    site.page.wait_for_selector(".state.cancelled")
    site.button("Delete").focus()
    site.page.keyboard.press("Enter")
    site.page.route(
        "**/v1/jobs/*", lambda route: route.abort() if route.request.method == "DELETE" else route.continue_()
    )
    site.button("Delete it").press("Enter")
    site.page.wait_for_selector(".problem")
    site.page.unroute_all()
    assert [said for said in site.said if "ERR_FAILED" in said], "the deletion failed"
    site.said.clear()
    site.button("Delete").press("Enter")
    site.button("Delete it").press("Enter")
    site.page.wait_for_url(f"{site.url}/")
    site.page.wait_for_selector("h1")
    assert not site.page.get_by_role("link", name="steered", exact=True).count()


def test_focus_goes_through_the_page_in_its_order(site: Site) -> None:
    site.open("/")
    order = []
    for _ in range(8):
        site.page.keyboard.press("Tab")
        order.append(site.focused())
        shown = site.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert shown != "none", f"the focus on {order[-1]} is visible"
    assert order[:7] == [
        *("Skip to the content", "factor-search", "Jobs and plans", "Submit", "Optuna dashboard", "REST interface"),
        "Submit a job",
    ]
    site.page.get_by_role("link", name="Submit a job").press("Enter")
    site.page.wait_for_selector("form.spec")
    site.page.wait_for_function("() => document.activeElement.id === 'content'")
    site.page.go_back()
    site.page.wait_for_function("() => document.querySelector('h1')?.textContent === 'Jobs and plans'")
    assert site.page.url == f"{site.url}/"


def test_jobs_are_filtered_and_paged(site: Site) -> None:
    with Database(site.database_url) as database:
        jobs = JobStore(database)
        for number in range(60):
            jobs.pause(jobs.submit(parse_spec(SPEC | {"name": f"paused {number}", "seed": number}))[0].id)
    site.open("/")
    section = site.page.get_by_role("region", name="Jobs", exact=True)
    section.get_by_label("State").select_option("paused")
    section.get_by_role("button", name="Show more").click()
    site.page.wait_for_function("() => document.querySelectorAll('section:last-of-type tbody tr').length === 60")
    assert set(section.locator(".state").all_inner_texts()) == {"paused"}
    assert not section.get_by_role("button", name="Show more").is_visible()
    with Database(site.database_url) as database:
        jobs = JobStore(database)
        assert len(jobs.list(state="paused", limit=100)) == 60


def test_a_checkpoint_is_supplied_to_a_plan(site: Site, checkpoint: Path) -> None:
    with Database(site.database_url) as database:
        plans = PlanStore(database)
        plan, _ = plans.submit(name="by stages", spec=PLAN, stages=[("tuned", "await_checkpoint"), ("out", "export")])
        assert PlanSteps(database).wait(plan, awaiting(checkpoint).model_dump(mode="json"))
    site.open(f"/plans/{plan.id}")
    site.page.wait_for_selector(".chain li.waiting[aria-current=step]")
    check_accessible(site, "plan")
    site.button("Supply a checkpoint").click()
    site.page.get_by_label("Folder, as the server sees it").fill(str(site.folder))
    site.button("Supply it").click()
    site.page.wait_for_selector(".problem")
    expect_refusal(site, 422)
    site.button("Supply a checkpoint").click()
    site.page.get_by_label("Folder, as the server sees it").fill(str(checkpoint))
    site.button("Supply it").click()
    site.page.wait_for_selector(".chain li.queued")
    site.see("checkpoint supplied")
    with Database(site.database_url) as database:
        PlanStore(database).cancel(plan.id)
    site.button("Retry").click()
    site.page.get_by_label("Start again at stage").select_option("tuned")
    site.page.get_by_role("dialog").get_by_role("button", name="Retry").click()
    site.button("Cancel").wait_for()
    with Database(site.database_url) as database:
        PlanStore(database).cancel(plan.id)


def test_jobs_are_compared(site: Site) -> None:
    jobs = [
        finished(
            site.folder, ["a.txt", "b.txt", "c.txt"], {"found": [1.0, 2.0, gain], "none": [6.0] * 3}, name=name, seed=n
        )
        for n, (name, gain) in enumerate((("the first", 3.0), ("the second", 3.3)))
    ]
    site.open("/")
    for name in ("the first", "the second"):
        site.page.get_by_label(f"Compare {name}").check()
    site.button("Compare 2 jobs").click()
    site.page.wait_for_url(f"{site.url}/compare?jobs=*")
    row = site.page.get_by_role("row", name="the second minus the first")
    assert "+0.1000 ± 0.1000" in row.inner_text()
    assert "the texts are the same" in row.inner_text()
    check_accessible(site, "comparison")
    site.open(f"/compare?jobs={jobs[0]}")
    site.see("Choose two to eight jobs")


def test_errors_are_shown_at_the_field_that_they_name(site: Site) -> None:
    site.open("/submit")
    site.page.get_by_label("Model (needed)").fill("some/model")
    site.page.get_by_label("Documents (needed)").fill("a.txt\nb.txt")
    site.page.get_by_label("Target length (needed)").fill("-5")
    site.page.get_by_text("Advanced", exact=True).click()
    strategy = site.page.get_by_role("group", name="strategy", exact=True)
    strategy.get_by_label("kind").select_option("evolution")
    strategy.get_by_label("population").fill("-1")
    site.page.get_by_text("Advanced", exact=True).click()
    site.button("Submit").click()
    site.page.wait_for_selector("[role=alert]")
    wrong = site.page.locator("[aria-invalid=true]")
    assert wrong.count() == 2
    assert site.page.evaluate("document.activeElement.value") == "-5"
    for n in range(2):
        described = wrong.nth(n).get_attribute("aria-describedby").split()[-1]
        assert "greater than" in site.page.locator(f"#{described}").inner_text()
    assert site.page.locator("details", has_text="Advanced").first.get_attribute("open") is not None
    check_accessible(site, "form")
    expect_refusal(site, 422)
    site.button("Edit as JSON").click()
    given = json.loads(site.page.locator("textarea.json").input_value())
    assert given["strategy"] == {"kind": "evolution", "population": -1}
    site.page.locator("textarea.json").fill(json.dumps(given | {"target_length": "x", "strategy": "cma"}))
    site.button("Submit").click()
    site.page.wait_for_selector(".problem li")
    expect_refusal(site, 422)
    site.button("Edit in the form").click()
    assert site.page.get_by_label("Target length (needed)").input_value() == "x"
    assert strategy.get_by_label("kind").input_value() == '"cma"'


def test_the_estimate_is_shown_before_submission(site: Site) -> None:
    """Where the server offers one: its answers are examples here."""
    described = site.app.openapi()
    described = described | {"paths": described["paths"] | {"/v1/estimate": {}}}
    site.page.route("**/openapi.json", lambda route: route.fulfill(json=described))
    asked: list[Any] = []

    def estimate(route: Any) -> None:
        asked.append(route.request.post_data_json)
        fits = asked[-1]["target_length"] < 10_000
        too_large = {"fits": False, "largest_length": 8192, "too_large": "the largest is 8,192 tokens", "search": None}
        route.fulfill(json=ESTIMATE if fits else ESTIMATE | too_large)

    site.page.route("**/v1/estimate", estimate)
    try:
        site.open("/submit")
        site.page.get_by_label("Model (needed)").fill("some/model")
        site.page.get_by_label("Documents (needed)").fill("a.txt")
        site.page.get_by_label("Target length (needed)").fill("4096")
        site.see("15.9 GB of 85.9 GB")
        site.see("1 h 44 min")
        site.page.get_by_text("Documents and how they are split").click()
        assert site.page.get_by_role("region", name="Documents by part").locator("tbody tr").count() == 3
        assert asked[-1] == {"model": {"id": "some/model"}, "data": {"files": ["a.txt"]}, "target_length": 4096}
        site.page.get_by_label("Target length (needed)").fill("32768")
        site.see("It does not fit into memory: the largest is 8,192 tokens.")
        check_accessible(site, "estimate")
    finally:
        site.page.unroute_all()


def test_submitted_watched_to_its_end_and_downloaded(site: Site, checkpoint: Path, texts: Path) -> None:
    """A real search of a small model, by a coordinator with a worker in a thread."""
    site.open("/submit")
    for label, value in (
        ("Model (needed)", str(checkpoint)),
        ("Documents (needed)", str(texts / "*.txt")),
        ("Target length (needed)", "128"),
        ("Name", 'it\'s the "first" $search'),
        ("Candidates", "8"),
        ("Initial tokens", "0"),
    ):
        site.page.get_by_label(label, exact=True).fill(value)
    site.page.get_by_text("Advanced", exact=True).click()
    for label in ("search documents", "validation documents", "held out documents"):
        site.page.get_by_label(label, exact=True).fill("2")
    command = site.page.get_by_label("the command", exact=True).inner_text()
    shown = json.loads(site.page.get_by_label("the JSON", exact=True).inner_text())
    assert asked_by(command) == parse_spec(shown)
    site.button("Submit").click()
    site.page.wait_for_url(f"{site.url}/jobs/*")
    job = site.page.url.rpartition("/")[2]
    with Database(site.database_url) as database:
        assert JobStore(database).get(job).parse_spec() == parse_spec(shown)
    failing(site, "**/downloads")
    with contextlib.closing(WholeService(site)) as service:
        service.start()
        site.page.wait_for_selector(".state.finished")
    site.see("it is started again")
    site.page.unroute_all()
    expect_refusal(site, 503)
    site.page.get_by_role("heading", name="Downloads").wait_for()
    site.page.wait_for_function(DRAWN)
    table = site.page.get_by_role("region", name=re.compile("Perplexity at 128 tokens")).inner_text()
    report = site.page.evaluate(
        "path => fetch(path).then((answer) => answer.json())", f"/v1/jobs/{job}/report?format=json"
    )
    assert all(f"{row['held_out']:.4f}" in table for row in report["results"])
    told = site.page.get_by_role("region", name="Result", exact=True).inner_text()
    said = f"No candidate was better than {report['winner']} on the validation documents" in told
    assert said != report["winner"].startswith("found")
    for chart in ("Rescale factors", "Perplexity against tokens spent", "Perplexity by length"):
        figure = site.page.locator("figure", has=site.page.get_by_role("heading", name=chart))
        figure.get_by_text("The figures as a table").click()
        figure.locator("table tbody tr").first.wait_for()
    factors = site.page.locator("figure", has=site.page.get_by_role("heading", name="Rescale factors"))
    first = factors.locator("table tbody tr").nth(1).locator("td").first.inner_text()
    assert first == f"{report['factors']['rescale_factors'][1]:.4f}"
    search = site.page.locator("figure", has=site.page.get_by_role("heading", name="Perplexity against tokens spent"))
    assert "yarn" in search.locator("table").inner_text(), "closed forms are known among the candidates"
    with site.page.expect_download() as download:
        site.page.get_by_role("button", name="Download factors.json").click()
    document = json.loads(Path(download.value.path()).read_text())
    assert document["rescale_factors"] == report["factors"]["rescale_factors"]
    assert download.value.suggested_filename == "factors.json"
    site.page.get_by_text("vLLM (vllm)").click()
    load = site.page.get_by_label("the command that loads it in vLLM", exact=True).inner_text()
    assert load == f'vllm serve {shlex.quote(str(checkpoint))} --hf-overrides "$(cat vllm.json)" --max-model-len 128'
    site.page.get_by_text("Hugging Face transformers (huggingface)").click()
    with site.page.expect_download() as download:
        site.page.get_by_role("button", name="Download config.json for Hugging Face").click()
    assert json.loads(Path(download.value.path()).read_text())["max_position_embeddings"] == 128
    check_accessible(site, "job")
    look_at_a_plan_that_reuses(site, job)


def look_at_a_plan_that_reuses(site: Site, job: str) -> None:
    """Its chain says what the stage gained."""
    with Database(site.database_url) as database:
        jobs, plans = JobStore(database), PlanStore(database)
        spec = parse_plan(PLAN).expanded()
        stages = [(str(stage.name), stage.kind) for stage in spec.stages or ()]
        plan, _ = plans.submit(name="reusing", spec=spec.model_dump(mode="json"), stages=stages)
        factors, report = jobs.document(job, "factors"), jobs.document(job, "report")
        work = SearchWork(stage="search-1", job=jobs.get(job).parse_spec()).model_dump(mode="json")
        outcome = {"model": None, "factors": factors, "report": report}
        PlanSteps(database).reuse(plan, work=work, job_id=job, outcome=outcome)
    failing(site, "**/report?format=json")
    site.open(f"/plans/{plan.id}")
    site.see("it is started again")
    site.page.unroute_all()
    expect_refusal(site, 503)
    first = site.page.locator(".chain li").first
    told = site.page.evaluate(
        "path => fetch(path).then((answer) => answer.json())", f"/v1/plans/{plan.id}/report?format=json"
    )
    first.get_by_text(told["stages"][0]["summary"]).wait_for()
    assert "an earlier result was reused" in first.inner_text()
    with site.page.expect_download() as download:
        site.button("Download the factors of search-1").click()
    assert json.loads(Path(download.value.path()).read_text()) == factors
    first.get_by_role("link", name="search-1").click()
    site.page.wait_for_url(f"{site.url}/jobs/{job}")


def asked_by(command: str) -> Any:
    """The specification that a command line asks for."""
    word, *arguments = shlex.split(command)[1:]
    assert word == "submit"
    return specification(build_parser(word).parse_args([word, *arguments]))


class WholeService(Service):
    """A coordinator with one worker that holds a real model, on a site's database."""

    def __init__(self, site: Site) -> None:
        super().__init__(site.database_url, work_folder=site.folder / "made")

    def start(self, *arguments: Any, **options: Any) -> Any:
        return super().start(workers=1, make=lambda: ModelWorker(threads=1))  # type: ignore[arg-type,return-value]

    def close(self) -> None:
        self.stop()
        self.database.close()


def test_five_thousand_evaluations_stay_fluid(site: Site) -> None:
    with Database(site.database_url) as database:
        jobs = JobStore(database)
        jobs.submit(parse_spec(SPEC | {"name": "large", "target_length": 1024}))
        claim = jobs.claim("bench", 3600)
        assert claim is not None
        EvaluationStore(database).start_search(claim[1], 1024, "large", prepared_search())
        record_search(database, claim[1], 5000)
    site.open(f"/jobs/{claim[0].id}")
    site.page.wait_for_function(DRAWN)
    drawn = site.page.evaluate("document.querySelectorAll('.js-plotly-plot .points path').length")
    assert 200 < drawn < 2000, "points are thinned"
    site.page.wait_for_function("() => document.body.innerText.includes('withdrawn')")


def test_lists_are_accessible(site: Site) -> None:
    site.open("/")
    site.page.wait_for_selector("tbody tr")
    check_accessible(site, "lists")
    site.open("/jobs/0")
    site.see("no job")
    check_accessible(site, "error")
    expect_refusal(site, 404)


def test_the_page_asks_for_a_key_once(site: Site) -> None:
    """The last one, since from then on every request needs the key."""
    with Database(site.database_url) as database:
        secret = KeyStore(database).create("anna", ["admin"])[1]
    site.page.goto(f"{site.url}/")
    site.page.get_by_label("Key", exact=True).press("Escape")
    site.page.wait_for_selector(".problem")
    site.page.wait_for_timeout(3500)
    assert not site.page.locator("dialog").count(), "who has none is not asked again and again"
    site.page.reload()
    site.page.get_by_label("Key", exact=True).fill("fs_wrong")
    site.button("Use it").click()
    site.page.wait_for_function("() => document.querySelector('dialog input')?.value === ''")
    site.page.get_by_label("Key", exact=True).fill(secret)
    check_accessible(site, "key")
    site.button("Use it").click()
    site.page.wait_for_selector("tbody tr")
    expect_refusal(site, 401)
    site.page.reload()
    site.page.wait_for_selector("tbody tr")
    assert site.page.evaluate("localStorage.length") == 0
    assert secret not in site.page.content()
    job = submitted(site, name="with a key")
    site.open(f"/jobs/{job}")
    site.page.get_by_text("live", exact=True).wait_for()
