"""The files of the web page as they are served, and the routes of the REST interface from which it draws."""

import ast
import contextlib
import gzip
import json
import math
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from api.app import create_app
from api.course import closed_form_numbers
from api.routes import page
from api.safe_pages import PAGE_POLICY
from bench.dashboard import new_job, record_search
from bench.stub import PREPARED, geometry, stub_spec
from factor_search.export.registry import ENGINES
from factor_search.factors import Factors
from factor_search.measure.evaluation import OK, Evaluation
from factor_search.measure.statistics import paired_difference, summarise
from factor_search.search.problem import SearchProblem
from factor_search.spec import ModelSpec, parse_spec
from storage.course import CourseStore, Step
from storage.dashboard.address import optuna_url_beside
from storage.dashboard.projection import Projection
from storage.dashboard.studies import StudyPages
from storage.database import Database
from storage.evaluations import Batch, Candidate, Computed, EvaluationStore
from storage.jobs import JobStore
from storage.keys import KeyStore
from tests import rest_service
from tests.rest_service import SPEC, FakeCoordinator, app_on, calling
from workers.search_run import _describe

FILES = Path(page.__file__).parents[1] / "page"
ADDRESSES = ("/", "/submit", "/compare?jobs=a,b", "/jobs/0", "/plans/p0")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with calling(app_on(tmp_path)) as client:
        yield client


def files_of(client: TestClient) -> set[str]:
    """Addresses of the files that the page names."""
    return set(re.findall(r'(?:href|src)="(/page/[^"]+)"', client.get("/").text))


class TestServing:
    @pytest.mark.parametrize("address", ADDRESSES)
    def test_every_address_of_the_page_is_the_page(self, address: str, client: TestClient) -> None:
        answer = client.get(address)
        assert (answer.status_code, answer.text) == (200, client.get("/").text)
        assert PAGE_POLICY in answer.headers.get_list("content-security-policy")
        assert answer.headers["cache-control"] == "no-cache"

    def test_the_policy_lets_run_and_reach_nothing_but_this_server(self) -> None:
        rules = dict(rule.split(" ", 1) for rule in PAGE_POLICY.split("; "))
        assert rules["default-src"] == "'none'"
        assert rules["script-src"] == rules["connect-src"] == "'self'"
        assert "unsafe" not in PAGE_POLICY
        assert "http" not in PAGE_POLICY
        assert "*" not in PAGE_POLICY

    def test_the_page_has_nothing_inline(self) -> None:
        text = (FILES / "index.html").read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", text)
        for file in FILES.glob("*.js"):
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", file.read_text()
            )

    def test_files_are_kept_for_ever_and_the_page_asks_again(self, client: TestClient) -> None:
        files = files_of(client)
        assert len(files) >= 5
        for address in files:
            answer = client.get(address)
            assert answer.headers["cache-control"] == page.FOREVER
            assert answer.headers.get("content-encoding") == "gzip" or len(answer.content) < page.SHORTEST_COMPRESSED
            name = address.rpartition("/")[2]
            assert answer.content == (FILES / name).read_bytes()
            again = client.get(address, headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            plain = client.get(address, headers={"Accept-Encoding": "identity"})
            assert plain.content == answer.content
            assert plain.headers["etag"] != answer.headers["etag"] or "content-encoding" not in answer.headers
        other = client.get("/page/earlier/app.js")
        assert (other.status_code, other.headers["cache-control"]) == (200, "no-cache"), "a page of before an upgrade"

    def test_every_module_is_named_by_another_and_exists(self) -> None:
        named = {
            name for file in FILES.glob("*") for name in re.findall(r'["/]([\w-]+\.(?:js|css|svg))"', file.read_text())
        }
        assert {file.name for file in FILES.iterdir() if file.name != page.INDEX} == named

    @pytest.mark.parametrize("name", ["index.html", "nothing.js", "..%2fapp.py", "%2e%2e", "a%00b", "app.py"])
    def test_nothing_else_is_served(self, name: str, client: TestClient) -> None:
        answer = client.get(f"/page/x/{name}")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"

    def test_no_file_outgrows_its_topic(self) -> None:
        assert max(len(file.read_text().splitlines()) for file in FILES.iterdir()) <= 400

    def test_the_chart_library_comes_from_its_package(self, client: TestClient) -> None:
        address = re.search(r'name="charts" content="(/page/\w+/plotly.min.js)"', client.get("/").text)
        assert address
        answer = client.get(address[1])
        assert answer.headers["cache-control"] == page.FOREVER
        assert "plotly.js v" in answer.text[:500]

    def test_without_the_chart_library_the_page_is_there(
        self, client: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(page, "_charts", lambda: None)
        page._index.cache_clear()
        try:
            assert 'name="charts" content=""' in client.get("/").text
            assert client.get("/page/x/plotly.min.js").status_code == 404
        finally:
            page._index.cache_clear()

    def test_only_reading_is_possible(self, client: TestClient) -> None:
        for method in ("POST", "PUT", "DELETE"):
            assert client.request(method, "/").status_code == 405

    def test_first_load_is_small(self, client: TestClient) -> None:
        total = sum(len(gzip.compress(file.read_bytes())) for file in FILES.iterdir())
        assert total < 100_000


def recorded(folder: Path, candidates: int) -> str:
    """The id of a job with so many candidates."""
    with Database(rest_service.settings(folder).database_url) as database:
        lease = new_job(database, "one")
        record_search(database, lease, candidates)
    return lease.job_id


class TestCourse:
    def test_it_has_the_figures_of_the_evaluations(self, tmp_path: Path, client: TestClient) -> None:
        job = recorded(tmp_path, 40)
        course = client.get(f"/v1/jobs/{job}/course").json()
        evaluations = client.get(f"/v1/jobs/{job}/evaluations", params={"limit": 1000}).json()["evaluations"]
        assert course["number"] == [one["number"] for one in evaluations] == list(range(40))
        assert course["perplexity"] == pytest.approx([one["perplexity"] for one in evaluations])
        assert course["outcome"] == [one["outcome"] or one["state"] for one in evaluations]
        assert course["tokens"] == [sum(one["tokens"]) for one in evaluations]
        assert course["documents"] == [one["documents"] for one in evaluations]
        assert sum(course["outcomes"].values()) == 40
        assert course["about"]["documents"] == {"search": 4}
        assert (course["next"], course["settled"]) == (None, 39)
        assert sum(worker["evaluations"] for worker in course["workers"]) == 40 - course["outcomes"].get("withdrawn", 0)
        assert len(set(course["candidate"])) == 40

    def test_piece_by_piece_it_is_the_same(self, tmp_path: Path, client: TestClient) -> None:
        job = recorded(tmp_path, 30)
        whole = client.get(f"/v1/jobs/{job}/course").json()
        after, numbers = -1, []
        while after is not None:
            piece = client.get(f"/v1/jobs/{job}/course", params={"after": after, "limit": 7}).json()
            assert (piece["about"] is None) == (after >= 0)
            assert (piece["workers"] is None) == (piece["outcomes"] is None) == (piece["next"] is not None)
            numbers += piece["number"]
            after = piece["next"]
        assert numbers == whole["number"]

    def test_what_may_still_change_is_asked_for_again(self, tmp_path: Path) -> None:
        with (
            calling(app_on(tmp_path)) as client,
            FakeCoordinator(rest_service.settings(tmp_path).database_url) as store,
        ):
            job = client.post("/v1/jobs", json=SPEC).json()["id"]
            empty = client.get(f"/v1/jobs/{job}/course").json()
            assert (empty["about"], empty["number"], empty["settled"]) == (None, [], -1)
            lease = store.claim()
            store.generation(lease, 0)
            running = [rest_service.candidate(number) for number in (4, 5)]
            late = rest_service.computed(running[1])
            store.evaluations.record({lease: Batch(started=running)})
            store.evaluations.record({lease: Batch(computed=[late], done=[(running[1], OK, False)])})
            course = client.get(f"/v1/jobs/{job}/course").json()
            assert course["settled"] == 3
            assert course["outcome"] == ["ok", "ok", "pruned", "diverged", "running", "ok"]
            again = client.get(f"/v1/jobs/{job}/course", params={"after": 3}).json()
            assert again["number"] == [4, 5]

    def test_a_candidate_that_waits_for_a_worker_is_asked_for_again(self, tmp_path: Path) -> None:
        """Those after it may have ended before, for what another job has evaluated is recorded at once."""
        with (
            calling(app_on(tmp_path)) as client,
            FakeCoordinator(rest_service.settings(tmp_path).database_url) as store,
        ):
            job = client.post("/v1/jobs", json=SPEC).json()["id"]
            lease = store.claim()
            zero, one, two = (rest_service.candidate(number) for number in range(3))
            for known, settled in (([zero, two], 0), ([one], 2)):
                found = [rest_service.computed(item) for item in known]
                store.evaluations.record({lease: Batch(computed=found, done=[(item, OK, False) for item in known])})
                assert client.get(f"/v1/jobs/{job}/course").json()["settled"] == settled
                assert client.get(f"/v1/jobs/{job}/course", params={"after": settled}).json()["settled"] == settled

    def test_a_candidate_that_is_continued_is_known_again(self, tmp_path: Path) -> None:
        with (
            calling(app_on(tmp_path)) as client,
            FakeCoordinator(rest_service.settings(tmp_path).database_url) as store,
        ):
            job = client.post("/v1/jobs", json=SPEC).json()["id"]
            lease = store.claim()
            steps = [rest_service.candidate(number, lambdas=(1.0, 2.0 + number % 2)) for number in range(3)]
            store.evaluations.record({lease: Batch(started=steps)})
            names = client.get(f"/v1/jobs/{job}/course").json()["candidate"]
            assert names[0] == names[2] != names[1]

    def test_on_postgresql_it_is_the_same(self, tmp_path: Path, postgresql_database: str) -> None:
        found = []
        for url in (f"sqlite:///{tmp_path / 'jobs.db'}", postgresql_database):
            with Database(url) as database:
                lease = new_job(database, "one")
                record_search(database, lease, 40)
                store = CourseStore(database)
                search = store.search(lease.job_id)
                assert search is not None
                (worker,) = store.workers(lease.job_id)
                steps = store.steps(lease.job_id, 3, 30)
                with contextlib.closing(StudyPages(url)) as studies:
                    assert studies.path(search.study) is None
                found.append((steps, store.outcomes(lease.job_id), search.prepared, worker.evaluations, worker.seconds))
        assert found[0] == found[1]
        steps = found[0][0]
        assert [step.number for step in steps] == list(range(4, 34))
        assert all((step.factors is not None) == (step.generation == 0) for step in steps)

    def test_a_job_that_is_not_a_search_has_an_empty_course(self, tmp_path: Path, client: TestClient) -> None:
        job = client.post("/v1/jobs", json=SPEC).json()["id"]
        with client.app.state.database.writing() as connection:  # type: ignore[attr-defined]
            connection.exec_driver_sql("UPDATE jobs SET kind = 'finetune'")
        assert client.get(f"/v1/jobs/{job}/course").json()["number"] == []
        assert client.get(f"/v1/jobs/{job}/downloads").status_code == 409

    @pytest.mark.parametrize("query", ["after=-2", "after=x", "limit=0", "limit=5001", f"after={2**31}"])
    def test_bad_questions_are_refused(self, query: str, client: TestClient) -> None:
        assert client.get(f"/v1/jobs/{'0' * 24}/course?{query}").status_code == 422

    def test_the_study_is_found_once_it_is_there(self, tmp_path: Path) -> None:
        url = rest_service.settings(tmp_path).database_url
        optuna_url = optuna_url_beside(url)
        changes = rest_service.settings(tmp_path, optuna_url=optuna_url)
        job = recorded(tmp_path, 3)
        with calling(create_app(changes, dashboard=lambda *scope: None)) as client:  # type: ignore[arg-type,return-value]
            ask = lambda: client.get(f"/v1/jobs/{job}/course").json()["about"]["study"]  # noqa: E731
            assert ask() is None
            assert not list(tmp_path.glob("*optuna*")), "asking makes no file"
            with Database(url) as database, Projection(database, optuna_url) as projection:
                projection.project(job)
            assert ask() == "/dashboard/studies/1"
        with calling(create_app(changes)) as client:
            assert client.get(f"/v1/jobs/{job}/course").json()["about"]["study"] is None, "there is no dashboard"


@settings(max_examples=20, deadline=None)
@given(
    step=st.sampled_from([0.01, 0.05, 0.5]),
    initial_tokens=st.sampled_from([[0], [0, 4]]),
    attention=st.sampled_from(["formula", "search", 1.1]),
    monotone=st.booleans(),
    strategy=st.sampled_from(["auto", "evolution", "cma"]),
)
def test_closed_forms_are_found_among_the_first_candidates(
    step: float, initial_tokens: list[int], attention: str | float, monotone: bool, strategy: str
) -> None:
    """Of what a coordinator records, as the search itself finds them (factor_search/search/progress.py)."""
    space = {"step": step, "initial_tokens": initial_tokens, "attention_factor": attention, "monotone": monotone}
    spec = stub_spec(space=space, strategy=strategy)
    problem = SearchProblem.of(spec, geometry())
    forms = [problem.space.factors(problem.space.project(factors)) for factors in problem.seeds]
    steps = [
        Step(number=i, generation=0, state="done", candidate=str(i), factors=factors, outcome=OK, losses=(), tokens=())
        for i, factors in enumerate(forms)
    ]
    prepared = json.loads(json.dumps(_describe(problem, PREPARED)))
    found = closed_form_numbers(spec.model_dump(mode="json"), prepared, problem.methods, steps)
    assert set(found) == set(problem.methods)
    for name, factors in problem.methods.items():
        assert forms[found[name]] == problem.space.factors(problem.space.project(factors))


class TestDownloads:
    def test_every_format_has_both_commands(self, client: TestClient) -> None:
        job = client.post("/v1/jobs", json=SPEC).json()
        model = parse_spec(job["spec"], stored=True).model
        formats = client.get(f"/v1/jobs/{job['id']}/downloads").json()["formats"]
        assert [one["format"] for one in formats] == list(ENGINES)
        for one in formats:
            words, engine = shlex.split(one["export"]), ENGINES[one["format"]]
            assert words[:6] == ["factor-search", "export", "--factors", "factors.json", "--format", one["format"]]
            assert words[6:] == [
                "--out",
                engine.out_name,
                *(["--model", engine.model_name] if engine.model_name else []),
            ]
            assert one["load"] == engine.load_command(model, SPEC["target_length"], Path(engine.out_name))

    @settings(max_examples=5, deadline=None)
    @given(
        name=st.text(
            st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="/"), min_size=1, max_size=20
        ),
        model=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1),
    )
    def test_names_stay_words_of_a_shell(self, name: str, model: str) -> None:
        """A shell says what it makes of each command."""
        spec, content = ModelSpec(id=model), '{"a": "b c$d"}'
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / f"x{name}"
            out.write_text(content)
            commands = {engine: ENGINES[engine].load_command(spec, 4096, out) for engine in ENGINES}
            script = "".join(f"set -- {command}; printf '%s\\0' \"$@\" END\n" for command in commands.values())
            told = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, cwd=folder).stdout
        answers = [part.split("\0")[:-1] for part in told.split("END\0")[:-1]]
        words = dict(zip(commands, answers, strict=True))
        assert words["gguf"] == ["llama-cli", "-m", str(out), "-c", "4096"]
        assert words["vllm"] == ["vllm", "serve", model, "--hf-overrides", content, "--max-model-len", "4096"]
        assert words["sglang"][4:7] == [model, "--json-model-override-args", content]
        assert words["mlx"][2] == words["tensorrt-llm"][1] == words["exllamav3"][3] == str(out)
        assert words["ollama"][-1] == f"{out}/Modelfile"
        for engine in ("huggingface", "onnx"):
            (call,) = [node for node in ast.walk(ast.parse(words[engine][2])) if isinstance(node, ast.Call)]
            assert ast.literal_eval(call.args[0]) == str(out)

    def test_the_documentation_has_the_commands(self) -> None:
        text = (Path(__file__).parents[1] / "docs" / "engines.md").read_text()
        for name, engine in ENGINES.items():
            command = engine.load_command(ModelSpec(id="path/or/hub-id"), 32768, Path(engine.out_name))
            assert f"| `{name}` | `{command}` |" in text, command


def finished(folder: Path, sources: list[str], losses: dict[str, list[float]], **changes: Any) -> str:
    """The id of a finished job with these losses of the found factors and of plain RoPE on held-out documents."""
    with Database(rest_service.settings(folder).database_url) as database:
        jobs, evaluations = JobStore(database), EvaluationStore(database)
        job, _ = jobs.submit(parse_spec(SPEC | changes))
        claim = jobs.claim("test", 60)
        assert claim is not None
        lease = claim[1]
        prepared = {"documents": {"held_out": sources}, "identity": {"model": "m"}}
        evaluations.start_search(lease, 512, "study", prepared)
        factors = {
            "found": Factors.of([1.0, 2.0 + job.parse_spec().seed], 0, 1.1),
            "none": Factors.of([1.0, 1.0], 0, 1.0),
        }
        batch = Batch()
        for number, (name, values) in enumerate(losses.items()):
            candidate = Candidate(
                part="held_out",
                number=number,
                generation=0,
                key=f"{job.id}{name}".rjust(64, "0"),
                factors=factors[name],
            )
            evaluation = Evaluation(
                candidate.key, factors[name], "held_out", OK, tuple(values), (511,) * len(values), {}, 0.1
            )
            batch.computed.append(Computed(evaluation=evaluation, worker="w", attempts=1))
            batch.done.append((candidate, OK, False))
        evaluations.record({lease: batch})
        found = summarise(losses["found"], [511] * len(losses["found"]))
        results = [
            {"name": "found", "is": "found", "held_out": found.perplexity, "standard_error": found.standard_error}
        ]
        report = {"factors": factors["found"].as_json(), "results": results}
        jobs.end(lease, "finished", factors={"a": 1}, report=report)
    return job.id


class TestComparison:
    def ask(self, folder: Path, *jobs: str) -> dict[str, Any]:
        with calling(app_on(folder)) as client:
            answer = client.get("/v1/compare", params={"jobs": ",".join(jobs)})
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()
            return found

    @settings(max_examples=5, deadline=None)
    @given(data=st.data())
    def test_differences_are_those_of_the_statistics(
        self, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("jobs")
        names = [f"{i}.txt" for i in range(6)]
        first = data.draw(st.permutations(names))[:4]
        second = data.draw(st.permutations(names))[:4]
        loss = st.floats(0.5, 5.0)
        one = {name: data.draw(loss) for name in first}
        other = {name: data.draw(loss) for name in second}
        plain = {name: 6.0 + i for i, name in enumerate(names)}
        jobs = [
            finished(
                folder, list(known), {"found": list(known.values()), "none": [plain[name] for name in known]}, seed=seed
            )
            for seed, known in enumerate((one, other))
        ]
        (pair,) = self.ask(folder, *jobs)["pairs"]
        shared = [name for name in first if name in second]
        assert (pair["documents"], pair["verified"]) == (shared, True)
        mean, error = paired_difference([other[n] for n in shared], [one[n] for n in shared], [511] * len(shared))
        assert pair["difference"] == pytest.approx(mean)
        assert pair["standard_error"] == (None if math.isnan(error) else pytest.approx(error))

    def test_a_document_with_another_text_is_not_shared(self, tmp_path: Path) -> None:
        jobs = [
            finished(tmp_path, ["a", "b"], {"found": [1.0, 2.0], "none": [6.0, plain]}, seed=seed)
            for seed, plain in enumerate((7.0, 7.5))
        ]
        (pair,) = self.ask(tmp_path, *jobs)["pairs"]
        assert pair["documents"] == ["a"]

    def test_samples_of_one_document_are_paired_in_their_order(self, tmp_path: Path) -> None:
        """Needles are hidden in each document as often as ``repeats`` says."""
        sources, plain = ["a", "b", "a", "b"], [6.0, 7.0, 6.5, 7.5]
        jobs = [
            finished(tmp_path, order, {"found": found, "none": none}, seed=seed)
            for seed, (order, found, none) in enumerate(
                (
                    (sources, [1.0, 2.0, 3.0, 4.0], plain),
                    (["b", "b", "a", "a"], [2.5, 4.5, 1.5, 3.5], [plain[1], plain[3], plain[0], plain[2]]),
                )
            )
        ]
        (pair,) = self.ask(tmp_path, *jobs)["pairs"]
        assert (pair["documents"], pair["verified"]) == (sources, True)
        assert (pair["difference"], pair["standard_error"]) == (0.5, 0.0)

    def test_what_cannot_be_compared_says_why(self, tmp_path: Path) -> None:
        one = finished(tmp_path, ["a"], {"found": [1.0]})
        two = finished(tmp_path, ["b"], {"found": [1.0]}, seed=1)
        needle = finished(tmp_path, ["a"], {"found": [1.0]}, seed=2, objective="needle")
        with Database(rest_service.settings(tmp_path).database_url) as database:
            queued = JobStore(database).submit(parse_spec(SPEC | {"seed": 3}))[0].id
        answer = self.ask(tmp_path, one, two, needle, queued)
        notes = {(pair["first"], pair["second"]): pair["note"] for pair in answer["pairs"]}
        assert "no held-out document" in notes[one, two]
        assert notes[one, needle] == "the objectives differ"
        assert f"job {queued} has no figures" in notes[two, queued]
        assert all(pair["difference"] is None for pair in answer["pairs"])
        held_out = {job["id"]: job["held_out"] for job in answer["jobs"]}
        assert held_out[one] == pytest.approx(math.e)
        assert held_out[queued] is None

    def test_bad_questions_are_refused(self, tmp_path: Path, client: TestClient) -> None:
        known = client.post("/v1/jobs", json=SPEC).json()["id"]
        for jobs, status in (
            (known, 422),
            (f"{known},{known}", 422),
            ("", 422),
            (f"{known},nothing", 404),
            (",".join("abcdefghi"), 422),
        ):
            assert client.get("/v1/compare", params={"jobs": jobs}).status_code == status, jobs


def test_who_submitted_and_what_is_kept_is_shown(client: TestClient) -> None:
    secret = KeyStore(client.app.state.database).create("anna", ["admin"])[1]  # type: ignore[attr-defined]
    client.headers["Authorization"] = f"Bearer {secret}"
    for word, document in (("jobs", SPEC), ("plans", rest_service.PLAN)):
        id = client.post(f"/v1/{word}", json=document).json()["id"]
        client.post(f"/v1/{word}/{id}/keep", json={"name": "for the paper"})
        for shown in (client.get(f"/v1/{word}/{id}").json(), client.get(f"/v1/{word}").json()[word][0]):
            assert (shown["submitted_by"], shown["kept"], shown["events"]) == ("anna", "for the paper", 1)
