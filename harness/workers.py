"""Processes of one machine that work on the jobs of one sweep: how many at once, and which GPU each of them uses."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

PLACES = "HARNESS_PLACES"
"""Environment variable that tells worker processes which places there are."""
_POLL_SECONDS = 0.5

_held: list[FileLock] = []
"""The lock of this process's place, held until the process ends."""


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, named as in ``CUDA_VISIBLE_DEVICES``."""
    import torch  # only here: a wrong command line need not wait for it

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(map(str, range(count))) if named is None else [name.strip() for name in named.split(",")][:count]


def one_per_gpu(without: int) -> int:
    """How many jobs this machine runs at once: one for each GPU, or ``without`` if it has none."""
    return len(visible_gpus()) or without


def one_gpu() -> int:
    """How many GPUs a job needs: 1, or 0 on a machine that has none."""
    return min(1, len(visible_gpus()))


@contextmanager
def places(count: int, gpus: list[str]) -> Iterator[None]:
    """Processes that are started inside the block share ``count`` places, see `take_place`.

    Args:
        count: how many of them may work at once.
        gpus: GPUs to use; with more places than GPUs, places share them in turn.
    """
    with TemporaryDirectory(prefix="steering-places-") as folder:
        os.environ[PLACES] = json.dumps({"folder": folder, "count": count, "gpus": gpus})
        try:
            yield
        finally:
            del os.environ[PLACES]


def take_place() -> None:
    """In a worker process: wait for a free place, keep it until the process ends, and see its GPU alone.

    The GPU stays the same for all jobs of a process, since torch cannot change its devices once it used one. In a
    process that was not started inside `places`, nothing happens.
    """
    if PLACES not in os.environ or _held:
        return
    shared = json.loads(os.environ[PLACES])
    number = _free_place(Path(shared["folder"]), shared["count"])
    if shared["gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = shared["gpus"][number % len(shared["gpus"])]


def _free_place(folder: Path, count: int) -> int:
    while True:
        for number in range(count):
            lock = FileLock(folder / f"{number}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            _held.append(lock)
            return number
        time.sleep(_POLL_SECONDS)
