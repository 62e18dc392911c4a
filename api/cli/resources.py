"""Jobs and plans of a server by one code path; an id says which of the two it names."""

import argparse

from api.client import Client
from api.plan_client import names_plan


def add_id_argument(parser: argparse.ArgumentParser) -> None:
    """Add the positional ``ID``."""
    parser.add_argument("id", metavar="ID", help="id of a job or plan, or the beginning of one")


def resource_of(client: Client, id: str):
    """The jobs or the plans of a server, whichever an id (or the beginning of one) belongs to."""
    return client.plans if names_plan(id) else client.jobs


def noun_of(id: str) -> str:
    """What an id names."""
    return "plan" if names_plan(id) else "job"
