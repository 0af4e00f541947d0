"""A repository of the Hugging Face hub: its name in, the files that are asked for out, in the hub's own cache.

  owner/name            as its main branch is now
  owner/name@revision   a branch, a tag or a commit

Nothing is fetched but what is asked for. Where the hub cannot be asked (HF_HUB_OFFLINE, no network, a hub in trouble),
what is in the cache is taken. Whatever else it answers becomes one sentence with the remedy.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from energy_lens.console import say
from energy_lens.errors import ElwError, UsageError

#: What a repository's main branch is called, on every hub.
MAIN = "main"

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)

#: Statuses that say that the hub, not the question, is in trouble.
FIRST_SERVER_ERROR = 500

#: What the hub says beside 401 to a token, as opposed to a name.
TOKEN_UNKNOWN = "Invalid credentials in Authorization header"

LOG_IN = "log in with hf auth login, or set HF_TOKEN to a token"


@dataclass(frozen=True)
class Repository:
    """A repository at one commit."""

    name: str
    revision: str  #: as it was asked for
    commit: str
    files: frozenset[str]  #: names of all files, with / between folders; without the hub, of those in the cache
    cached: bool = False  #: whether the hub could not be asked

    @property
    def address(self) -> str:
        """The same commit again, as a user writes it."""
        return f"{self.name}@{self.commit}"

    def fetch(self, files: Sequence[str]) -> Path:
        """The folder in which these files are, under the same names, fetched in this order where the cache lacks them.

        files: one at least. Raises UsageError or ElwError when the hub does not give one.
        """
        from huggingface_hub import hf_hub_download

        for number, file in enumerate(files):
            try:
                # The first by its revision, so that the cache knows what that was and can be asked for it offline; the
                # others by commit, for which the hub is not asked when the cache has them.
                revision = self.commit if number else self.revision
                path = Path(hf_hub_download(self.name, file, revision=revision, local_files_only=self.cached))
            except Exception as error:
                raise refusal(self.name, self.revision, error) from error
            folder = path.parents[file.count("/")]
            if folder.name != self.commit:
                raise ElwError(f"{self.name} has changed while it was fetched: run the same command again.")
        return folder


#: Repositories that the hub was asked for, by address: a process sees one commit of each.
_SETTLED: dict[str, Repository] = {}

#: Addresses of which a user was told that the hub could not be asked.
_TOLD: set[str] = set()


def repository(address: str) -> Repository:
    """The repository at an address, owner/name or owner/name@revision, its revision settled to a commit.

    Raises UsageError for one that there is not or that may not be read, ElwError when the hub cannot be asked and the
    cache has nothing of it.
    """
    if address in _SETTLED:
        return _SETTLED[address]
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RevisionNotFoundError

    name, revision = parsed(address)
    try:
        info = HfApi().model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        found = None if isinstance(error, RevisionNotFoundError) else _in_cache(name, revision)
        said = refusal(name, revision, error)
        if found is None:
            raise said from error
        if not constants.HF_HUB_OFFLINE and address not in _TOLD:
            _TOLD.add(address)
            say(f"{address} is read from the cache, for the hub could not be asked ({type(error).__name__}).")
        return found
    files = frozenset(sibling.rfilename for sibling in info.siblings or ())
    _SETTLED[address] = Repository(name, revision, str(info.sha), files)
    return _SETTLED[address]


def parsed(address: str) -> tuple[str, str]:
    """(name, revision) of an address, main unless it names another."""
    name, at, revision = address.partition("@")
    if not is_name(name) or (at and not revision):
        raise UsageError(f"{address} names no repository: write owner/name or owner/name@revision.")
    return name, revision or MAIN


def is_name(name: str) -> bool:
    """Whether a repository can be called so."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _in_cache(name: str, revision: str) -> Repository | None:
    """What the cache has of a repository, if anything."""
    from huggingface_hub import snapshot_download

    try:
        # No file is asked for: only the folder is.
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[], local_files_only=True))
    except (OSError, ValueError):
        return None
    files = frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return Repository(name, revision, folder.name, files, cached=True)


def refusal(name: str, revision: str, error: Exception) -> ElwError:
    """What the hub or its library said of a repository, as a sentence with the remedy.

    A UsageError where the request or the user's rights have to change, another ElwError where time or room is lacking.
    """
    from huggingface_hub import constants, errors

    while isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # which file is not cached helps nobody; why it could not be fetched does
    page = f"{constants.ENDPOINT}/{name}"
    if isinstance(error, errors.GatedRepoError):  # a RepositoryNotFoundError too
        return UsageError(f"{name} is gated: accept its terms at {page}, then {LOG_IN} of the account that did.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return _missing(name)
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"{name} has no revision {revision!r}: its branches, tags and commits are at {page}/commits.")
    if isinstance(error, errors.DisabledRepoError):
        return UsageError(f"{name} has been disabled by the hub: take another one.")
    if isinstance(error, errors.HfHubHTTPError):
        return _answered(name, error)
    lacking = constants.HF_HUB_OFFLINE and isinstance(error, errors.LocalEntryNotFoundError)
    if lacking or isinstance(error, errors.OfflineModeIsEnabled):
        return ElwError(
            f"{name} at {revision!r} is not in the cache, or not wholly, and HF_HUB_OFFLINE forbids to fetch it: unset "
            "that once, or name a folder."
        )
    return _failed(name, error)


def _missing(name: str) -> UsageError:
    """The hub does not tell a private repository from one that does not exist."""
    return UsageError(
        f"The hub has no repository {name!r}, or a private one: check the name, or {LOG_IN} that may read it."
    )


def _answered(name: str, error: Exception) -> ElwError:
    """A sentence on a status of HTTP that has no error of its own."""
    response = error.response  # type: ignore[attr-defined]
    status = int(response.status_code)
    if status == 401 and response.headers.get("X-Error-Message") != TOKEN_UNKNOWN:
        return _missing(name)
    if status == 401:
        return UsageError(f"The hub does not know the token that was sent for {name}: {LOG_IN} that is still valid.")
    if status == 403:
        return UsageError(f"Your token may not read {name}: {LOG_IN} with that right.")
    if status == 429:
        seconds = response.headers.get("Retry-After", "")
        wait = f"wait {seconds} seconds" if seconds.isdigit() else "wait some minutes"
        return ElwError(f"The hub has had too many requests from here (429): {wait}, or {LOG_IN}, which has more.")
    if status >= FIRST_SERVER_ERROR:
        return ElwError(f"The hub is in trouble ({status}) and did not give {name}: try again later.")
    return ElwError(f"The hub refused {name} ({status}): check HF_ENDPOINT, or try again later.")


def _failed(name: str, error: Exception) -> ElwError:
    """A sentence on what went wrong on the way, or here."""
    from huggingface_hub import constants

    cache = constants.HF_HUB_CACHE
    code = error.errno if isinstance(error, OSError) else None
    if code in NO_ROOM:
        return ElwError(f"There is no room for {name} in {cache}: make some, or set HF_HOME to a larger disk.")
    if code in NOT_WRITABLE:
        return ElwError(f"{cache} cannot be written: set HF_HOME to a folder that can be.")
    kind = type(error).__name__
    # The library's HTTP client is called httpx or httpx2, by its version.
    if type(error).__module__.startswith("httpx") or isinstance(error, ConnectionError | TimeoutError):
        if kind in ("RemoteProtocolError", "ReadError", "ReadTimeout"):
            return ElwError(f"The connection broke off while {name} was fetched ({kind}): run the same command again.")
        return ElwError(
            f"{name} is not in the cache, and {constants.ENDPOINT} cannot be reached ({kind}): check the network, and "
            "HF_ENDPOINT if it is set."
        )
    reason = " ".join(str(error).split())[:200].rstrip(".") or kind
    return ElwError(f"{name} could not be fetched ({reason}): run the same command again.")
