"""Decide whether a checkpoint's name is a folder or a hub id, `org/name[@revision]`, and download what a hub id names.

`huggingface_hub` itself obeys HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE. Only `FILES` are downloaded: data, and
no pickles.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from thoughtbubbles.model.checkpoint.checks import (
    CHAT_TEMPLATE_FILE,
    CONFIG_FILE,
    TOKENIZER_FILE,
    TOKENIZER_JSON,
    CheckpointError,
    check_architecture,
)
from thoughtbubbles.model.checkpoint.weights import INDEX, SINGLE
from thoughtbubbles.model.files.atomic import latest_folder
from thoughtbubbles.model.files.untrusted import read_json_object

CARD_FILE = "README.md"
"""The model card."""
FILES = (
    *(CONFIG_FILE, TOKENIZER_FILE, TOKENIZER_JSON, CHAT_TEMPLATE_FILE, CARD_FILE),
    *(SINGLE, INDEX, "model-*-of-*.safetensors"),
)
HUB_ID = re.compile(r"(?P<repository>\w[\w.-]{0,95}/\w[\w.-]{0,95})(@(?P<revision>[^@\s]+))?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a checkpoint lies on this machine."""

    folder: Path
    """The folder to read; it may not exist."""
    name: str
    """The repository of a hub id; otherwise the folder's name."""
    revision: str | None = None
    """The commit of the repository that was downloaded; None for a folder."""

    def instead_of(self, source: str | Path) -> str | Path:
        """Return what to read several times in place of `source`, so that a hub is asked once, and of one commit."""
        return source if self.revision is None else self.folder


def locate(source: str | Path) -> Location:
    """Return where the checkpoint `source` lies, after a download if it is a hub id and nothing exists at that path.

    Raises `CheckpointError` if the hub id cannot be downloaded or is not a checkpoint.
    """
    path = Path(source)
    parts = HUB_ID.fullmatch(str(source))
    folder = latest_folder(path.resolve())
    if parts is None or folder.exists() or path.is_symlink():
        return Location(folder=folder, name=path.resolve().name)
    return _download(parts["repository"], parts["revision"])


def check_repository(name: str) -> None:
    """Raise `ValueError` unless `name` is org/name."""
    parts = HUB_ID.fullmatch(name)
    if parts is None or parts["revision"]:
        raise ValueError(f"{name!r} is not a repository's name, which is org/name")


def hub_error(error: Exception, repository: str, revision: str | None) -> str:
    """Return in one line why a hub refused, or could not be reached."""
    from httpx2 import TransportError  # noqa: PLC0415 - what huggingface_hub sends requests with
    from huggingface_hub import constants, errors, is_offline_mode  # noqa: PLC0415 - slow, and for hub ids alone

    at, wanted = constants.ENDPOINT, revision or constants.DEFAULT_REVISION
    match error:
        case errors.GatedRepoError():
            reason = f"it is gated: ask for access at {at}/{repository}, then set HF_TOKEN"
        case errors.RepositoryNotFoundError():
            reason = f"{at} has no such repository; a private one needs HF_TOKEN"
        case errors.RevisionNotFoundError():
            reason = f"it has no revision {wanted}"
        case errors.LocalEntryNotFoundError():
            where = "HF_HUB_OFFLINE is set" if is_offline_mode() else f"{at} cannot be reached"
            reason = f"{where}, and the cache has no complete copy of revision {wanted}"
        case errors.HfHubHTTPError():
            reason = f"{at} answered {error.response.status_code}: {error.server_message or error}"
        case TransportError():
            reason = f"{at} cannot be reached"
        case _:
            reason = str(error) or type(error).__name__
    return " ".join(reason.split())


def _download(repository: str, revision: str | None) -> Location:
    """Download a checkpoint into the cache, unless it is there: its configuration, and the rest if that is ours."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.utils.tqdm import disable_progress_bars  # noqa: PLC0415

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=[CONFIG_FILE, CARD_FILE]))
        if not (folder / CONFIG_FILE).exists():
            raise ValueError(f"it has no {CONFIG_FILE}, which every checkpoint has")
        check_architecture(read_json_object(folder / CONFIG_FILE))
        commit = folder.name
        snapshot_download(repository, revision=commit, allow_patterns=list(FILES))
        if not (folder / SINGLE).exists() and not (folder / INDEX).exists():
            raise ValueError(
                f"it has no {SINGLE}, and weights of another form, such as pytorch_model.bin, are not read"
            )
    except Exception as error:  # those of the HTTP client have no common type with the others
        reason = hub_error(error, repository, revision)
        raise CheckpointError(f"{repository}: no such folder; as a repository on a hub: {reason}") from error
    return Location(folder=folder, name=repository, revision=commit)
