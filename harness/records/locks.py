"""One writer at a time, on one machine and over several: a lock with a heartbeat that tells who holds it.

A lock of the operating system ends with its process, but on network file systems it may hold on one machine only. So
the holder also writes its host, process and a heartbeat beside it, and others respect both.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from harness.progress import phase
from harness.records.lines import write_json

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
"""A heartbeat older than this is that of a holder that is gone."""
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    host: str
    process: int
    heartbeat: float

    def __str__(self) -> str:
        """For messages."""
        return f"process {self.process} on {self.host}"

    @property
    def is_other(self) -> bool:
        """Whether it is another process that still lives."""
        is_us = (self.host, self.process) == (socket.gethostname(), os.getpid())
        return not is_us and time.time() - self.heartbeat < STALE_SECONDS


@contextmanager
def locked(folder: Path, wait_seconds: float, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a folder for this process; others wait.

    Args:
        folder: made if it is not there.
        wait_seconds: how long to wait for a holder without a heartbeat. One that lives is waited for without end.
        on_wait: called once when a wait begins, to give up what others may need meanwhile.

    Raises:
        RuntimeError: another process still holds it after the wait; the message says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    if not _acquired(lock, folder):
        on_wait()
        _wait(lock, folder, wait_seconds)

    released = threading.Event()
    beat = threading.Thread(target=_keep_beating, args=(folder, released), daemon=True)
    _write_holder(folder)
    beat.start()
    try:
        yield
    finally:
        released.set()
        beat.join()
        _note(folder).unlink(missing_ok=True)
        lock.release()


def _acquired(lock: FileLock, folder: Path) -> bool:
    """Whether we hold the lock now, in the system's eyes and in those of other machines."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    holder = holder_of(folder)
    if holder is not None and holder.is_other and holder.host != socket.gethostname():
        lock.release()
        return False
    return True


def _wait(lock: FileLock, folder: Path, wait_seconds: float) -> None:
    holder = holder_of(folder)
    last_alive = time.monotonic()
    with phase(f"wait for {holder or 'another process'}, which works on {folder}"):
        while not _acquired(lock, folder):
            holder = holder_of(folder) or holder
            if holder is not None and holder.is_other:
                last_alive = time.monotonic()

            # Only silence counts: a holder that works for hours is waited for.
            if time.monotonic() - last_alive > wait_seconds:
                raise RuntimeError(
                    f"{holder or 'another process'} is working on {folder} and gave no sign of life for "
                    f"{wait_seconds:g} s"
                )

            time.sleep(_POLL_SECONDS)


def holder_of(folder: Path) -> Holder | None:
    """Who holds a folder's lock, as far as it is written down."""
    try:
        return Holder(**json.loads(_note(folder).read_text("utf-8")))
    except (OSError, ValueError, TypeError):  # not there, or being replaced
        return None


def _note(folder: Path) -> Path:
    return folder / ".holder.json"


def _write_holder(folder: Path) -> None:
    write_json(_note(folder), {"host": socket.gethostname(), "process": os.getpid(), "heartbeat": time.time()})


def _keep_beating(folder: Path, released: threading.Event) -> None:
    while not released.wait(HEARTBEAT_SECONDS):
        try:
            _write_holder(folder)
        except OSError:  # a full disk shows at the next record, in words that say what to do
            continue
