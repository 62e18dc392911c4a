"""``factor-search watch`` of a plan: its own events, and in between those of its jobs while they are under way."""

from api.cli.watch import INTERRUPTED, STATUS, Display
from api.client import Client, Event


def watch_plan(client: Client, plan_id: str, *, as_json: bool = False) -> int:
    """Show a plan's events until it has ended, is paused or waits for a checkpoint; the exit status tells which."""
    display = Display(as_json)
    try:
        for event in client.plans.events(plan_id, on_interruption=display.interrupted):
            display.show(event)
            if event.kind == "stage_queued" and _is_under_way(client, plan_id, event):
                for of_job in client.jobs.events(event.data["job"], on_interruption=display.interrupted):
                    if of_job.kind not in ("submitted", "finished"):  # which the plan tells in its own words
                        display.show(of_job)
                    if of_job.kind == "paused" and client.plans.get(plan_id).state == "paused":
                        return _stopped(display, plan_id, "paused")
            if event.kind in ("paused", "waiting", "checkpoint_refused"):
                plan = client.plans.get(plan_id)
                if plan.state in ("paused", "waiting") and event.number >= plan.events:  # not one of its past
                    return _stopped(display, plan_id, plan.state)
        return STATUS.get(client.plans.get(plan_id).state, 1)
    except KeyboardInterrupt:
        display.say(f"the plan goes on; to see it again: factor-search watch {plan_id}")
        return INTERRUPTED
    finally:
        display.close()


def _is_under_way(client: Client, plan_id: str, event: Event) -> bool:
    """Whether the job that an event names is what the plan does now, not long ago."""
    plan = client.plans.get(plan_id)
    present = {stage.job for stage in plan.stages if stage.name == plan.stage}
    return not plan.ended and event.data["job"] in present


def _stopped(display: Display, plan_id: str, state: str) -> int:
    remedy = {"paused": f"resume {plan_id}", "waiting": f"hand-in {plan_id} FOLDER"}[state]
    display.close()
    display.say(f"to let it go on: factor-search {remedy}")
    return STATUS[state]
