"""The cache: content hashes of large files, and folders that are built once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock


def cache_root() -> Path:
    """Where converted models and remembered hashes live: ``$HARNESS_CACHE``, else the user's cache directory."""
    if chosen := os.environ.get("HARNESS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "steering-harness"


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex. A file of unchanged path, size and modification time is not read again."""
    path = path.resolve()
    stat = path.stat()
    stamp = [str(path), stat.st_size, stat.st_mtime_ns]
    note = cache_root() / "digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    if (known := _remembered(note)) and known["stamp"] == stamp:
        return known["sha256"]
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    _remember(note, {"stamp": stamp, "sha256": digest})
    return digest


def files_digest(paths: Iterable[Path]) -> str:
    """One SHA-256 over the names and contents of several files; their order does not matter."""
    lines = sorted(f"{path.name} {file_digest(path)}" for path in paths)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def build_once(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a cache folder atomically: others see all of it or nothing, and only one process does the work."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if folder.exists():
            return
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            write(draft)
            draft.replace(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _remembered(note: Path) -> dict | None:
    try:
        known = json.loads(note.read_text())
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) and {"stamp", "sha256"} <= known.keys() else None


def _remember(note: Path, content: dict) -> None:
    """Write the note whole or not at all: several processes may start at once."""
    note.parent.mkdir(parents=True, exist_ok=True)
    draft = note.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(content))
    draft.replace(note)
