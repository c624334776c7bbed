"""Model folders: on disk, or fetched from the hub at a known commit."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the library that the hub itself speaks through, which changes between its versions
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from harness.subject.digest import files_digest

_SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")
_OFFLINE = (
    "without internet give a local folder (model=hf model.id=FOLDER), or a model that the hub's cache already holds"
)


def local_folder(name: str) -> Path | None:
    """The folder that a model id names, or None if it reads like a hub id.

    Raises:
        FileNotFoundError: it reads like a path, but there is no such folder, or no model in it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        for pattern in ("config.json", "*.safetensors"):
            if not any(folder.glob(pattern)):
                raise FileNotFoundError(f"model folder {folder} holds no {pattern}: save a model there first")
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise FileNotFoundError(f"model folder not found: {folder} (model.id takes a folder or a hub id OWNER/NAME)")
    return None


def folder_identity(folder: Path) -> str:
    """Hash of everything in a model folder that decides its outputs."""
    patterns = ("*.safetensors", *_SETTINGS)
    return f"sha256:{files_digest({path for pattern in patterns for path in folder.glob(pattern)})}"


def hub_folder(repo: str, revision: str | None, *, weights: bool, code: bool) -> tuple[Path, str]:
    """Fetch a model from the hub, or find it in the hub's cache.

    Args:
        repo: ``OWNER/NAME``.
        revision: branch, tag or commit; None for the default branch.
        weights: False fetches only the settings and the tokenizer.
        code: also fetch the model's own Python files.

    Returns:
        The folder, and the commit that the revision stands for.

    Raises:
        PermissionError: the model is gated.
        FileNotFoundError: no such model, revision, or safetensors.
        ConnectionError: the hub does not answer and the model is not in its cache.
    """
    patterns = [*_SETTINGS, *(["*.safetensors"] if weights else []), *(["*.py"] if code else [])]
    try:
        snapshot = snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
    except (OSError, ValueError, HTTPError) as error:
        if (explained := _explained(error, repo, revision)) is None:
            raise
        raise explained from error

    folder = Path(snapshot)
    missing = [p for p in ("config.json", *(["*.safetensors"] if weights else [])) if not any(folder.glob(p))]
    if missing:
        raise FileNotFoundError(f"{repo} (revision {revision or 'main'}) has no {missing[0]} here; {_OFFLINE}")
    return folder, folder.name


def _explained(error: Exception, repo: str, revision: str | None) -> Exception | None:
    """The same failure in one line and with what to do; None if it has nothing to do with the hub."""
    match error:
        case GatedRepoError():
            terms = f"accept its terms at https://huggingface.co/{repo}, then run `hf auth login`"
            return PermissionError(f"{repo} is gated: {terms}; {_OFFLINE}")
        case RevisionNotFoundError():
            return FileNotFoundError(f"{repo} has no revision {revision!r} on the hub: check model.revision")
        case RepositoryNotFoundError():
            what = "is not on the hub, or it is private: check model.id, or run `hf auth login`"
            return FileNotFoundError(f"{repo} {what}; {_OFFLINE}")
        case HFValidationError():
            return ValueError(f"model.id must be a local folder or a hub id OWNER/NAME, got {repo!r}")
        case LocalEntryNotFoundError() | OfflineModeIsEnabled() | HfHubHTTPError() | HTTPError():
            cause = error.__cause__ or error
            offline = isinstance(cause, OfflineModeIsEnabled)
            reason = "HF_HUB_OFFLINE is set" if offline else str(cause).split("\n")[0][:120]
            return ConnectionError(f"cannot fetch {repo} from the hub ({reason}): {_OFFLINE}")
    return None
