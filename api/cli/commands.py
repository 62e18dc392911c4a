"""The commands of ``factor-search``: the module of each, what it does, and the packages it needs beside the core."""

from dataclasses import dataclass
from importlib.util import find_spec

from factor_search.errors import FactorSearchError

CLIENT_PACKAGES = ("httpx2",)
SERVICE_PACKAGES = (
    *CLIENT_PACKAGES,
    *(
        "a2wsgi",
        "alembic",
        "fastapi",
        "optuna_dashboard",
        "prometheus_client",
        "psycopg",
        "ray",
        "sqlalchemy",
        "uvicorn",
    ),
)
"""Import names of the extra ``service`` in pyproject.toml."""


@dataclass(frozen=True)
class Command:
    """One command."""

    module: str
    """In this package; its ``configure(parser)`` adds the arguments and sets ``run``."""
    summary: str
    needs: tuple[str, ...] = ()
    """Packages that the core does not install."""


class NotInstalledError(FactorSearchError):
    """A command needs packages that are not installed."""


COMMANDS = {
    "demo": Command("demo", "run a search, or a whole extension plan, on the shipped model", SERVICE_PACKAGES),
    "run": Command("run", "run a search job or an extension plan in this process"),
    "estimate": Command("estimate", "estimate tokens, time and memory of a job or plan before it starts"),
    "evaluate": Command("evaluate", "measure the perplexity or the retrieval accuracy of rescale factors"),
    "inspect": Command("inspect", "show the RoPE geometry of a model"),
    "methods": Command("methods", "print the rescale factors of the closed-form methods"),
    "export": Command("export", "write rescale factors in the format of an inference engine"),
    "approximate": Command("approximate", "find the numbers of YaRN, or the base, that come nearest to found factors"),
    "verify": Command("verify", "show that an installed inference engine computes with rescale factors"),
    "import": Command("import_factors", "read rescale factors from another format into a factors file"),
    "publish": Command("publish", "write the results of a search as a folder for the Hugging Face hub, and upload it"),
    "reproduce": Command("reproduce", "measure the figures of a publication again"),
    "serve": Command("serve", "run the service: REST interface, dashboard and coordinator", SERVICE_PACKAGES),
    "submit": Command("submit", "submit a search job or an extension plan to a server", CLIENT_PACKAGES),
    "jobs": Command("listing", "list the jobs on a server, newest first", CLIENT_PACKAGES),
    "plans": Command("listing", "list the extension plans on a server, newest first", CLIENT_PACKAGES),
    "watch": Command("watch", "follow a job or plan until it ends, pauses or waits for a checkpoint", CLIENT_PACKAGES),
    "pause": Command("control", "pause a job or plan so that it can be resumed", CLIENT_PACKAGES),
    "resume": Command("control", "resume a paused job or plan", CLIENT_PACKAGES),
    "cancel": Command("control", "cancel a job or plan for good", CLIENT_PACKAGES),
    "retry": Command("retry", "retry a plan that has failed or was cancelled", CLIENT_PACKAGES),
    "supply-checkpoint": Command("supply_checkpoint", "supply the checkpoint that a plan waits for", CLIENT_PACKAGES),
    "download": Command("download", "download the results of a finished job or plan", CLIENT_PACKAGES),
    "storage": Command("storage", "list, keep and delete what a server stores", CLIENT_PACKAGES),
    "cache": Command("cache", "list and delete what is in this machine's cache"),
    "keys": Command("keys", "create, list and revoke API keys in the service's database", SERVICE_PACKAGES),
    "doctor": Command("doctor", "check the installation and what it can reach"),
}
"""In the order of the help."""


def check_installed(command: str) -> None:
    """Refuse a command whose packages are not installed.

    Raises:
        NotInstalledError: naming the packages and how to install them.
    """
    missing = [package for package in COMMANDS[command].needs if find_spec(package) is None]
    if missing:
        raise NotInstalledError(
            f"{command} needs the service, and {', '.join(missing)} cannot be imported: "
            "pip install 'factor-search[service]'"
        )
