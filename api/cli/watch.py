"""``factor-search watch``: events of a job or plan as they happen, as a progress bar where there is a terminal."""

import argparse
import sys

from tqdm import tqdm

from api.cli.arguments import Commands
from api.cli.environment import add_server_arguments
from api.client import Client, Event, ServiceError
from api.schemas import Progress

INTERRUPTED = 130
STATUS = {"finished": 0, "failed": 1, "cancelled": 3, "paused": 4, "waiting": 5}
EXIT_STATUS = (
    "Exit status: 0 finished, 1 failed, 3 cancelled, 4 paused, 5 waiting for a checkpoint, 130 stopped by Ctrl-C (the "
    "job goes on)."
)
SHOWN_CHARACTERS = 300
TOLD_SHARES = 10
"""Without a terminal, a long work is told of each time that another such share of it is done."""


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "watch",
        help="follow a job or plan until it has ended",
        description="Follow a job or plan until it has ended, is paused or waits for a checkpoint. A server that "
        "goes away meanwhile is waited for.",
        epilog=EXIT_STATUS,
    )
    parser.add_argument("job", metavar="ID", help="id of a job or plan, or the beginning of one")
    add_server_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print every event as a line of JSON, for machines")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Follow one job or plan."""
    from api.cli.watch_plan import watch_plan  # which shows the jobs of a plan as this one does

    with Client(arguments.url) as client:
        if client.of(arguments.job) is client.plans:
            plan = client.plans.find(arguments.job)
            if plan.note:
                print(f"note: {plan.note}", file=sys.stderr)
            return watch_plan(client, plan.id, as_json=arguments.json)
        job = client.jobs.find(arguments.job)
        if job.note:
            print(f"note: {job.note}", file=sys.stderr)
        return watch(client, job.id, as_json=arguments.json)


def watch(client: Client, job_id: str, *, as_json: bool = False, interrupted: str | None = None) -> int:
    """Show a job's events until it has ended or is paused; the exit status tells which.

    Args:
        client: of the job's server.
        job_id: the job.
        as_json: every event as a line of JSON.
        interrupted: what to say at Ctrl-C instead of how to watch the job again.
    """
    display = Display(as_json)
    try:
        for event in client.jobs.events(job_id, on_interruption=display.interrupted):
            display.show(event)
            if event.kind in ("finished", "failed", "cancelled"):
                return STATUS[event.kind]
            if event.kind == "paused" and client.jobs.get(job_id).state == "paused":
                display.say(f"to let it go on: factor-search resume {job_id}")
                return STATUS["paused"]
        return STATUS.get(client.jobs.get(job_id).state, 1)
    except KeyboardInterrupt:
        display.say(interrupted or f"the job goes on; to see it again: factor-search watch {job_id}")
        return INTERRUPTED
    finally:
        display.close()


class Display:
    """Events on standard error: a bar on a terminal, a line for each generation elsewhere."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._interactive = sys.stderr.isatty() and not as_json
        self._bar: tqdm | None = None
        self._shown: tuple[object, ...] | None = None
        self._away = False

    def show(self, event: Event) -> None:
        """One event, in its way."""
        self._away = False
        if self._as_json:
            print(event.model_dump_json(), flush=True)
        elif event.kind == "progress":
            self._progress(Progress.model_validate(event.data))
        else:
            self.close()
            self.say(describe(event))

    def interrupted(self, error: ServiceError) -> None:
        """Say once that the server is away."""
        if not self._away:
            self.say(f"{error}; trying again ...")
        self._away = True

    def say(self, text: str) -> None:
        """A line of text, above the bar."""
        with tqdm.external_write_mode(file=sys.stderr):
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal clean."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _progress(self, progress: Progress) -> None:
        line = progress_line(progress)
        if not self._interactive:
            alike = bool(progress.to_score or progress.step is not None)
            step = (progress.phase if alike else "", progress.generation, int(TOLD_SHARES * progress.share) * alike)
            if step != self._shown:
                self.say(line)
            self._shown = step
            return
        if self._bar is None:
            form = "{percentage:3.0f} %|{bar:20}| {desc}"
            self._bar = tqdm(total=1.0, bar_format=form, dynamic_ncols=True, file=sys.stderr)
        self._bar.set_description_str(line, refresh=False)
        self._bar.update(min(progress.share, 1.0) - self._bar.n)
        self._bar.refresh()


def progress_line(progress: Progress) -> str:
    """Progress in words."""
    if progress.to_score:
        return f"{progress.phase}: {progress.scored or 0} of {progress.to_score} candidates"
    if progress.step is not None:
        line = f"{progress.phase}: step {progress.step} of {progress.steps}"
        return line if progress.loss is None else f"{line}, loss {progress.loss:.4f}, {progress.tokens:,} tokens"
    best = "none" if progress.best_perplexity is None else f"{progress.best_perplexity:.4f}"
    budget = f" of {progress.candidates_budget}" if progress.candidates_budget else ""
    line = f"generation {progress.generation}: {progress.candidates}{budget} candidates, best {best}"
    if progress.seconds > 0:
        line += f", {progress.tokens / progress.seconds:,.0f} tokens/s"
    return line + (f", {progress.workers} worker{'s' * (progress.workers != 1)}" if progress.workers else "")


def describe(event: Event) -> str:
    """Any event in words, kinds that this version does not know included."""
    at = event.at.astimezone().strftime("%H:%M:%S")
    if event.kind == "phase" and "phase" in event.data:
        return f"{at} {event.data['phase']} ..."
    if event.kind == "finished" and event.data.get("perplexity") is not None:
        winner, perplexity = event.data.get("winner"), event.data["perplexity"]
        ended = f" (search {event.data['ended']})" if event.data.get("ended") else ""
        return (
            f"{at} finished{ended}: {winner}, held-out perplexity {perplexity:.4f}; factor-search download fetches it"
        )
    if event.kind == "failed":
        details = str(event.data.get("error"))
    else:
        details = ", ".join(f"{key} {value}" for key, value in event.data.items() if value is not None)
    if len(details) > SHOWN_CHARACTERS:
        details = f"{details[: SHOWN_CHARACTERS - 3]}..."
    return f"{at} {event.kind.replace('_', ' ')}" + (f": {details}" if details else "")
