"""``factor-search watch``: the events of a job or plan as they happen, with a progress bar on a terminal."""

import argparse
import sys
from collections.abc import Iterator

from api.cli.arguments import add_id_argument
from api.cli.display import ProgressDisplay
from api.cli.environment import add_server_arguments
from api.client import Client, Event, Job, Plan, ServiceError
from api.schemas import Progress
from storage.states import ENDED

INTERRUPTED = 130
STATUS = {"finished": 0, "failed": 1, "cancelled": 3, "paused": 4, "waiting": 5}
CONTINUE_WITH = {"paused": "resume {id}", "waiting": "supply-checkpoint {id} FOLDER"}
STOPPING = ("paused", "waiting", "checkpoint_refused")
"""Kinds of events after which a job or plan may have stopped until a user continues it."""
SHOWN_CHARACTERS = 300


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_id_argument(parser)
    add_server_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print every event as a line of JSON, for scripts")
    parser.epilog = (
        "If the server cannot be reached for a while, the command waits for it. Exit status: 0 finished, 1 failed, "
        "3 cancelled, 4 paused, 5 waiting for a checkpoint, 130 stopped by Ctrl-C (the job or plan continues)."
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Follow one job or plan."""
    with Client(arguments.url) as client:
        item = client.of(arguments.id).find(arguments.id)
        if item.note:
            print(f"note: {item.note}", file=sys.stderr)
        return watch(client, item.id, as_json=arguments.json)


def watch(client: Client, id: str, *, as_json: bool = False, interrupted: str | None = None) -> int:
    """Show events until a job or plan has ended, is paused or waits for a checkpoint; the exit status tells which.

    Args:
        client: of its server.
        id: of the job or plan.
        as_json: print every event as a line of JSON.
        interrupted: what to say at Ctrl-C instead of how to watch it again.
    """
    display = Display(as_json)
    try:
        for event in _events(client, id, display):
            display.show(event)
            if event.kind in ENDED and client.of(id) is client.jobs:  # a plan that has ended may be retried
                return STATUS[event.kind]
        state = client.of(id).get(id).state
        if state in CONTINUE_WITH:
            display.close()
            display.say(f"to continue: factor-search {CONTINUE_WITH[state].format(id=id)}")
        return STATUS.get(state, 1)
    except KeyboardInterrupt:
        display.say(interrupted or f"it continues; to watch it again: factor-search watch {id}")
        return INTERRUPTED
    finally:
        display.close()


class Display:
    """Shows events on standard error, and those of kind ``progress`` as a bar where there is a terminal."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._progress = ProgressDisplay()
        self._away = False

    def show(self, event: Event) -> None:
        """Show one event."""
        self._away = False
        if self._as_json:
            print(event.model_dump_json(), flush=True)
        elif event.kind == "progress":
            self._progress.show(Progress.model_validate(event.data), event.at.timestamp())
        else:
            self.close()
            self.say(describe(event))

    def interrupted(self, error: ServiceError) -> None:
        """Say once that the server cannot be reached."""
        if not self._away:
            self.say(f"{error}; trying again ...")
        self._away = True

    def say(self, text: str) -> None:
        """Print a line of text, above the bar."""
        self._progress.say(text)

    def close(self) -> None:
        """Leave the terminal clean."""
        self._progress.close()


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


def _events(client: Client, id: str, display: Display) -> Iterator[Event]:
    """Events until a job or plan ends or stops; between those of a plan come the events of its jobs under way."""
    resource = client.of(id)
    for event in resource.events(id, on_interruption=display.interrupted):
        yield event
        if event.kind == "stage_queued" and _is_under_way(client, id, event):
            for of_job in client.jobs.events(event.data["job"], on_interruption=display.interrupted):
                if of_job.kind not in ("submitted", "finished"):  # the plan has events of its own for these
                    yield of_job
                if of_job.kind == "paused" and resource.get(id).state == "paused":
                    return
        if event.kind in STOPPING and _has_stopped(resource.get(id), event):
            return


def _is_under_way(client: Client, plan_id: str, event: Event) -> bool:
    """Whether the job that an event names is the plan's present one, not one of its past."""
    plan = client.plans.get(plan_id)
    present = {stage.job for stage in plan.stages if stage.name == plan.stage}
    return not plan.ended and event.data["job"] in present


def _has_stopped(item: Job | Plan, event: Event) -> bool:
    """Whether nothing happens until a user does something; events of a plan's past are not the reason."""
    is_past = isinstance(item, Plan) and event.number < item.events
    return item.state in CONTINUE_WITH and not is_past
