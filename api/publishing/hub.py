"""Uploads a publication to the Hugging Face hub, and downloads what is needed to measure it again."""

import contextlib
import glob
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from api.publishing.claims import NAME, read_claims
from factor_search.errors import ModelLoadError, OutputError, SpecError, one_line
from factor_search.files.hub import asking_hub
from factor_search.files.reading import reading_rules
from factor_search.model.checkpoint_files import check_hub_id
from factor_search.visible import HIDDEN

if TYPE_CHECKING:
    from huggingface_hub import HfApi

GIT_ATTRIBUTES = ".gitattributes"
MESSAGE = "Rescale factors of factor-search"


def check_repository(name: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        SpecError: it is not ``OWNER/NAME``.
    """
    try:
        check_hub_id(name)
    except ModelLoadError:
        raise SpecError(f"{name!r} is not a name on the hub: give OWNER/NAME") from None
    if "/" not in name:
        raise SpecError(f"{name!r} has no owner: give OWNER/NAME")


def why_not_uploaded() -> str | None:
    """Why nothing can be uploaded, as far as that shows here, and what to do; None if it can be tried."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if not reading_rules().hub or HF_HUB_OFFLINE:
        return "the hub is switched off (--no-hub or HF_HUB_OFFLINE)"
    if get_token() is None:
        return "there is no token: log in with `hf auth login`, or set HF_TOKEN"
    return None


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Create a repository if needed, and upload a folder into it; large files go the hub's own way.

    Files of the publication that was there before are deleted in the same commit if this one has none of that name:
    what loads the repository would take the old factors from them.

    The token is where huggingface_hub finds it (``HF_TOKEN``, or the file that ``hf auth login`` writes).

    Args:
        folder: of a publication.
        repository: ``OWNER/NAME``; one that exists must hold a publication, or nothing.
        private: create it private.

    Returns:
        The address of the repository.

    Raises:
        OutputError: it holds something else, is public although ``private`` is asked for, does not say which files are
            of the publication before, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        with without_warnings():
            before = _published_there(api, repository, private=private)
            old = [glob.escape(name) for name in sorted(before) if not (folder / name).is_file()]
            address = api.create_repo(repository, private=private or None, exist_ok=True)
            api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=MESSAGE, delete_patterns=old or None
            )
    except OutputError:
        raise
    except Exception as error:  # of the hub, of the network, or of what is between
        raise OutputError(f"cannot upload to {repository}: {_said(error)}; {folder} is complete") from None
    return str(address)


def _published_there(api: "HfApi", repository: str, *, private: bool) -> set[str]:
    """The files in a repository that a publication wrote; none where there is no repository, or an empty one.

    Raises:
        OutputError: it holds something else, is public although it should be private, or does not say what is of it.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        with asking_hub(repository):
            known = api.model_info(repository)
    except RepositoryNotFoundError:
        return set()
    files = {one.rfilename for one in known.siblings or ()} - {GIT_ATTRIBUTES}
    if files and NAME not in files:
        raise OutputError(f"{repository} on the hub holds something else: choose another --repo")
    if private and known.private is False:
        raise OutputError(f"{repository} on the hub is public already: leave out --private, or choose another --repo")
    if not files:
        return set()
    try:
        return files & set(read_claims(Path(api.hf_hub_download(repository, NAME, revision=known.sha))).files)
    except OutputError as error:
        raise OutputError(f"{repository} on the hub: {error}; remove its {NAME}, or choose another --repo") from None


def downloaded(repository: str, file: str) -> Path:
    """Download one file of a publication.

    Raises:
        OutputError: the repository or the file is not there, or the hub cannot be reached or is not allowed.
    """
    from huggingface_hub import HfApi

    if not reading_rules().hub:
        raise OutputError(f"{repository} is not a folder here, and the hub is switched off (--no-hub)")
    try:
        with without_warnings(), asking_hub(repository):
            return Path(HfApi().hf_hub_download(repository, file))
    except Exception as error:  # of the hub, of the network, or of what is between
        raise OutputError(
            f"{repository} is not a folder here, and {file} cannot be read from the hub: {_said(error)}"
        ) from None


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Keep the hub's client from a warning at each attempt: what fails in the end is said once."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _said(error: Exception) -> str:
    """The message of an error without the token, should one stand in it."""
    from huggingface_hub import get_token

    text, token = str(error), get_token()
    return one_line(OutputError(text.replace(token, HIDDEN) if token else text))
