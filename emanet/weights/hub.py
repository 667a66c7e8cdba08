"""Models on the Hugging Face hub: `hf:owner/name`, or `hf:owner/name@revision`, means a repository's model file there.

    path = path_of("hf:owner/name@v1")     # downloaded once; then it is in huggingface_hub's cache
    commit("owner/name", Path("folder"))   # a folder's files, as one commit

The file is `model.safetensors`, which `push` writes; nothing else of a repository is read. The cache, tokens and the
address of the hub are those of huggingface_hub (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT), version 1 or 2.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError

PREFIX = "hf:"
FILE = "model.safetensors"
CARD = "README.md"
PICTURES = "pictures"
"""Folder of the card's pictures."""
LOG_IN = "run `hf auth login` or set HF_TOKEN"
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([^\s@]+))?", re.ASCII)


class Pushed(NamedTuple):
    """What a commit came to."""

    url: str
    """Of the commit."""
    commit: str
    kept_card: bool
    """The repository has a README.md, which was left as it is."""


def is_name(source: str | Path) -> bool:
    return str(source).startswith(PREFIX)


def parts(source: str | Path) -> tuple[str, str | None]:
    """(repository, revision or None) of `hf:owner/name@revision`; the prefix may be missing. Raises InputError."""
    match = _NAME.fullmatch(str(source).removeprefix(PREFIX))
    if not match:
        raise InputError(
            f"{source} is not the name of a model on the hub: write hf:owner/name, or hf:owner/name@revision for a "
            "branch, a tag or a commit"
        )
    return match[1], match[2]


def path_of(source: str | Path, tell: Callable[[str], object] = lambda text: None) -> Path:
    """The model file of `hf:owner/name@revision` on this disk, downloaded unless the cache has it; default branch main.

    Where the hub cannot be reached, the cache's latest file of that revision is taken. tell is told which commit the
    file is of. Raises InputError.
    """
    repository, revision = parts(source)
    from huggingface_hub import hf_hub_download

    with _refusals(repository, revision):
        path = Path(hf_hub_download(repository, FILE, revision=revision))
    tell(f"the model is {FILE} of {repository} on the hub, commit {_commit_of(path)[:12]}")
    return path


def local(source: str, tell: Callable[[str], object] = lambda text: None) -> str:
    """The path of a model on the hub, as in path_of; any other source as it is."""
    return str(path_of(source, tell)) if is_name(source) else source


def pinned(source: str) -> str:
    """The name with the commit that its revision is at now: two reads of it read the same. Raises InputError."""
    return f"{PREFIX}{parts(source)[0]}@{_commit_of(path_of(source))}" if is_name(source) else source


def _commit_of(path: Path) -> str:
    return path.parent.name  # the cache has snapshots/COMMIT/FILE


def is_of_card(name: str) -> bool:
    """Whether a path in a repository is the model card or one of its pictures."""
    return name == CARD or name.startswith(f"{PICTURES}/")


def commit(target: str, folder: Path, *, private: bool = False, replace_card: bool = False) -> Pushed:
    """Put the folder's files into the repository `owner/name`, or its branch `owner/name@branch`, in one commit.

    Both are made if they do not exist. A README.md that is there stays, and the folder's pictures are left out with the
    new one, unless replace_card. private: refuse a repository that is public. Raises InputError.
    """
    repository, branch = parts(target)
    from huggingface_hub import CommitOperationAdd, HfApi

    with _refusals(repository, branch, "write to"):
        api = HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)
        if branch:
            api.create_branch(repository, branch=branch, exist_ok=True)
        info = api.model_info(repository, revision=branch)
        if private and not info.private:
            raise InputError(
                f"{repository} exists and is public: make it private on its settings page, or leave out --private"
            )
        kept = not replace_card and any(file.rfilename == CARD for file in info.siblings or ())
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        if kept:
            names = [name for name in names if not is_of_card(name)]
        done = api.create_commit(
            repository,
            [CommitOperationAdd(name, str(folder / name)) for name in names],
            commit_message="Model from emanet",
            revision=branch,
            parent_commit=info.sha,  # a README.md that somebody adds meanwhile is not replaced either
        )
    return Pushed(done.commit_url, done.oid, kept)


@contextlib.contextmanager
def _refusals(repository: str, revision: str | None, what: str = "read") -> Iterator[None]:
    """What huggingface_hub raises becomes an InputError."""
    from huggingface_hub import errors

    # Of httpx in version 1 and httpx2 in version 2; hf_xet, which moves large files, raises RuntimeError and OSError.
    http_error: type[Exception] = errors.HTTPError
    try:
        yield
    except (http_error, errors.EntryNotFoundError, OSError, ValueError, RuntimeError) as error:
        raise InputError(_reason(error, repository, revision, what)) from error


def _reason(error: BaseException, repository: str, revision: str | None, what: str) -> str:
    """A sentence about an error of huggingface_hub."""
    from huggingface_hub import constants, errors, get_token

    hub, name = constants.ENDPOINT, f"{repository}@{revision}" if revision else repository
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, errors.LocalEntryNotFoundError):
        missing = f"{name} is not in the cache {constants.HF_HUB_CACHE}"
        if constants.HF_HUB_OFFLINE or error.__cause__ is None:
            return f"{missing}, and HF_HUB_OFFLINE forbids to download it"
        return f"{missing}, and {_reason(error.__cause__, repository, revision, what)}"
    if isinstance(error, RuntimeError) and error.__cause__:  # "Error while uploading", from what went wrong
        return _reason(error.__cause__, repository, revision, what)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"cannot {what} {repository}: HF_HUB_OFFLINE is set"
    if isinstance(error, errors.HFValidationError):
        return f"{repository} cannot be the name of a repository: {lines[0]}"
    if isinstance(error, errors.GatedRepoError):
        log_in = "" if get_token() else f", and {LOG_IN}"
        return f"{repository} is gated: ask for access at {hub}/{repository}{log_in}"
    if isinstance(error, errors.RepositoryNotFoundError):
        private = "or your token may not read it" if get_token() else f"or it is private and needs a token: {LOG_IN}"
        return f"there is no model {repository} on {hub}, {private}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision}: name a branch, a tag or a whole commit hash"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{name} has no {FILE}, so it is not a model that `push` has written"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return f"{hub} does not know the token in use, or there is none: {LOG_IN}"
        if status == 403:
            return f"your token may not {what} {repository}: make one that may at {hub}/settings/tokens"
        if status in (409, 412):
            return f"{repository} has been changed meanwhile: try again"
        return f"{hub} answers with error {status}: {error.server_message or lines[0]}"
    if isinstance(error, errors.HTTPError):
        return f"{hub} cannot be reached: {lines[0]}"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot {what} {repository}: {error.filename or hub}: {error.strerror}"
    return f"cannot {what} {repository}: {' '.join(lines)}"
