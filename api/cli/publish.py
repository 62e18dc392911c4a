"""``factor-search publish``: the results of a search as a folder for the Hugging Face hub."""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from api.cli.arguments import add_json_argument, add_no_hub_argument, add_remote_code_argument
from api.cli.commands import check_installed
from api.cli.environment import add_server_arguments
from factor_search.errors import SpecError
from factor_search.files.reading import reading_rules, under


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("results", nargs="?", type=Path, metavar="RESULTS", help="the folder of a finished search")
    parser.add_argument("--job", metavar="ID", help="a finished job of a server instead, or the beginning of its id")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the folder to write")
    parser.add_argument("--repo", metavar="OWNER/NAME", help="upload it to this repository on the hub")
    parser.add_argument("--private", action="store_true", help="with --repo: create the repository private")
    parser.add_argument("--model", metavar="M", help="the checkpoint; default: the one that was searched")
    add_remote_code_argument(parser)
    parser.add_argument(
        "--base-model", metavar="OWNER/NAME", help="the model's name on the hub, if a local copy was searched"
    )
    parser.add_argument("--license", metavar="L", help="of the model; default: what its own card says")
    parser.add_argument(
        "--with-model", action="store_true", help="also write the whole checkpoint, or GGUF file, with the factors"
    )
    parser.add_argument("--hide-names", action="store_true", help="do not name the files of the documents")
    add_no_hub_argument(parser)
    add_server_arguments(parser)
    add_json_argument(parser)
    parser.epilog = (
        "Paths, the name of the job and the documents themselves are never published; documents are named by the last "
        "part of their paths and by hashes. The token is the one of huggingface_hub: hf auth login, or HF_TOKEN."
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the folder, upload it if asked, and print where it is."""
    from api.publishing.folder import Publication, publish
    from api.publishing.hub import check_repository, upload, why_not_uploaded
    from api.publishing.results import read_results

    if (arguments.results is None) == (arguments.job is None):
        arguments.usage_error("give either RESULTS or --job")
    for name in filter(None, (arguments.repo, arguments.base_model)):
        check_repository(name)
    if arguments.private and not arguments.repo:
        raise SpecError("--private goes with --repo")
    with contextlib.ExitStack() as stack:
        if arguments.no_hub:
            stack.enter_context(under(replace(reading_rules(), hub=False)))
        results = read_results(arguments.results or stack.enter_context(_downloaded(arguments)))
        model = results.spec.model.model_copy(
            update={
                "id": arguments.model or results.spec.model.id,
                "trust_remote_code": bool(arguments.trust_remote_code),
            }
        )
        asked = Publication(
            results=results,
            model=model,
            base_model=arguments.base_model,
            license=arguments.license,
            whole=arguments.with_model,
            repo=arguments.repo,
            hide_names=arguments.hide_names,
        )
        files = publish(asked, arguments.out)
        missing = why_not_uploaded() if arguments.repo else None
        address = (
            upload(arguments.out, arguments.repo, private=arguments.private) if arguments.repo and not missing else None
        )
    if arguments.json:
        print(
            json.dumps({"files": [str(file) for file in files], "uploaded": address, "not_uploaded_because": missing})
        )
    else:
        print("\n".join([*map(str, files), *([address] if address else [])]))
    if missing:
        print(f"not uploaded: {missing}; {arguments.out} is complete, and the same command uploads it", file=sys.stderr)
    return 0


@contextlib.contextmanager
def _downloaded(arguments: argparse.Namespace) -> Iterator[Path]:
    """The results of a job of a server, in a temporary folder."""
    check_installed("download")
    from api.cli.download import save
    from api.client import Client

    with tempfile.TemporaryDirectory() as folder, Client(arguments.url) as client:
        save(client, client.jobs.find(arguments.job), Path(folder, "results"))
        yield Path(folder, "results")
