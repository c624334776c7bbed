"""Records on disk: appended line by line and flushed, so that a killed run loses nothing it had finished."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file

from harness.steering import Artifact

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space, over the quota, or past the largest file allowed."""


class DiskFullError(OSError):
    """No space is left; what was written before is intact."""


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                f"disk full while writing {path}; records so far are intact, free space and repeat"
            ) from error
        raise


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step: readers see the old or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _writing(path):
        try:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if there is no such file."""
    return json.loads(path.read_text("utf-8")) if path.exists() else None


class Lines:
    """A JSON Lines file that is only ever appended to.

    Args:
        path: the file; it need not exist yet. A last line without its newline, torn by a kill, is cut off on opening.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            self._drop_torn_line()

    def _drop_torn_line(self) -> None:
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            with self.path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All records so far."""
        if self.path.exists():
            with self.path.open(encoding="utf-8") as file:
                for line in file:
                    yield json.loads(line)

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrite the file, in one step, with only the wanted records."""
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in self if wanted(record))
        temporary = self.path.with_suffix(f".{os.getpid()}")
        with _writing(self.path):
            temporary.write_text(text, "utf-8")
            temporary.replace(self.path)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records in one write and make sure that they reach the disk.

        Raises:
            DiskFullError: the file is left as it was before.
        """
        text = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
        if not text:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: closing a buffered file would try to write once more what had just been taken back.
        with _writing(self.path), self.path.open("ab", buffering=0) as file:
            size, rest = file.tell(), text.encode()
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), size)
                raise


class GenerationStore:
    """One set of generations: ``meta.json``, ``artifact.safetensors``, trials, generations, cost and the receipt.

    Args:
        folder: ``generations/<key>/``.
        identity: everything that the key was made from; stored for readers.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.trials = Lines(folder / "trials.jsonl")
        self.generations = Lines(folder / "generations.jsonl")
        self.costs = Lines(folder / "cost.jsonl")
        if not (folder / "meta.json").exists():
            write_json(folder / "meta.json", identity)

    @property
    def artifact(self) -> Artifact | None:
        """The fitted tensors, if they were saved before."""
        path = self.folder / "artifact.safetensors"
        return load_file(path) if path.exists() else None

    def save_artifact(self, artifact: Artifact) -> None:
        """Save the fitted tensors in one step."""
        path = self.folder / "artifact.safetensors"
        temporary = path.with_suffix(f".{os.getpid()}")
        with _writing(path):
            try:
                save_file({name: value.detach().cpu().contiguous() for name, value in artifact.items()}, temporary)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    @property
    def receipt(self) -> dict[str, Any] | None:
        """Proof of steering, if it was measured before."""
        return read_json(self.folder / "receipt.json")

    def save_receipt(self, receipt: Mapping[str, Any]) -> None:
        """Keep the proof of steering."""
        write_json(self.folder / "receipt.json", receipt)

    def cost(self) -> dict[str, float]:
        """Work of all sessions so far: sums, the largest peak memory, and the number of trials."""
        total: dict[str, float] = {"trials": sum(row["trial"] >= 0 for row in self.trials)}
        for line in self.costs:
            for name, value in line.items():
                if isinstance(value, str):  # what kind of work the line is about
                    continue
                total[name] = max(total.get(name, 0), value) if name.startswith("peak") else total.get(name, 0) + value
        return total


@contextmanager
def locked(folder: Path, wait_seconds: float) -> Iterator[None]:
    """Hold a folder for this process; others wait.

    Raises:
        RuntimeError: another process still holds it after the wait.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=wait_seconds)
    except Timeout as error:
        raise RuntimeError(f"another run is working on {folder} and did not finish in {wait_seconds:g} s") from error
    try:
        yield
    finally:
        lock.release()
