"""The processes of one worker that share a model (``model.tensor_parallel``), see `harness.subject.sharding`.

The worker itself is the first of them. It alone talks to whoever hands out work, and passes on what it is ordered and
told; the others do the same pieces at the same time, and what they would write is dropped. They end together.

``python -m harness.executors.ranks PORT MEETING_PORT RANK RANKS`` starts one of the others, with the key of the
connection on stdin.
"""

from __future__ import annotations

import os
import queue
import secrets
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any, NoReturn

from harness import progress
from harness.executors.remote_store import RemoteStore
from harness.executors.wire import Wire, unpacked
from harness.steps import Steps, tests_of
from harness.subject import sharding

NOWHERE = Path(os.devnull) / "nowhere"
"""Folder of a store that keeps no checkpoints: the first process would go on from them, and the others from nothing."""
_GRACE_SECONDS = 300.0
"""So long processes may differ in ending an order, before they are taken to wait for one another for ever."""


class Followers:
    """The other processes, as the first one sees them.

    After every order each of them says whether it could carry it out. Unless all ended it alike, the first process
    ends, and with it the others: they would wait for one another, or add up what does not belong together.

    Args:
        ranks: processes that share a model, this one included.
    """

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._order, self._is_at_work = 0, False
        self._endings: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        key, meeting_port = secrets.token_bytes(32), _free_port()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        listener = Listener(("127.0.0.1", 0), backlog=ranks, authkey=key)
        for rank in range(1, ranks):
            places = (listener.address[1], meeting_port, rank, ranks)
            command = [sys.executable, "-m", "harness.executors.ranks", *map(str, places)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
            threading.Thread(target=_outlive, args=(process,), daemon=True).start()
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin as keyhole:  # it may have ended at once
                keyhole.write(key.hex().encode() + b"\n")
        self._wires = [Wire(listener.accept()) for _ in range(1, ranks)]
        listener.close()

        for wire in self._wires:
            threading.Thread(target=self._listen, args=(wire,), daemon=True).start()
        sharding.join(0, ranks, meeting_port)

    def answer(self, answer: Any) -> None:
        """Pass on what this process was told in answer to a question."""
        self._tell("answer", answer)

    @contextmanager
    def doing(self, *order: Any) -> Iterator[None]:
        """Have them do what this process does inside the block: ``("open", job, …)`` or ``("step", name, …)``."""
        self._order, self._is_at_work = self._order + 1, True
        self._tell("order", self._order, order)
        failed = True
        try:
            yield
            failed = False
        finally:
            self._is_at_work = False
            self._demand_that_all_ended_alike(failed)

    def _demand_that_all_ended_alike(self, failed: bool) -> None:
        for _ in self._wires:
            try:
                reason = self._endings.get(timeout=_GRACE_SECONDS)
            except queue.Empty:
                _end("a process that shares the model did not end what this one has ended")
            if (reason is not None) != failed:
                _end(reason or f"this process failed, and one that shares the model did not:\n{traceback.format_exc()}")

    def _tell(self, *message: Any) -> None:
        for wire in self._wires:
            wire.send(*message)

    def _listen(self, wire: Wire) -> None:
        """Take how orders ended; a failure that this process does not share leaves it waiting, and must end it."""
        try:
            while True:
                order, reason = wire.receive()
                self._endings.put(reason)
                if reason is not None:
                    waited_for = threading.Timer(_GRACE_SECONDS, self._end_if_still_at, (order, reason))
                    waited_for.daemon = True
                    waited_for.start()
        except (EOFError, OSError):
            _end("a process that shares the model with this one is gone")

    def _end_if_still_at(self, order: int, reason: str) -> None:
        if self._is_at_work and self._order == order:
            _end(f"a process that shares the model with this one failed alone:\n{reason}")


def _outlive(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of another process, and do not outlive it: it may not even have begun."""
    _end(f"a process that shares the model with this one ended with status {process.wait()}")


def _end(reason: str) -> NoReturn:
    print(reason, file=sys.stderr, flush=True)
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Follower:
    """One of the others.

    Args:
        wire: to the first process.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._steps: Steps | None = None
        self._inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self) -> NoReturn:
        """Do what the first process does, until it is gone."""
        while True:
            message = self._inbox.get()
            if message[0] == "answer":  # to a question that this process did not come to
                continue
            _kind, number, order = message
            reason = None
            try:
                self._obey(*order)
            except Exception:  # whatever failed here fails in the first process, too, or ends all of them
                reason = traceback.format_exc()
            self._wire.send(number, reason)

    def _obey(self, what: str, *details: Any) -> None:
        if what == "open":
            self._steps = None
            self._steps = self._opened(*details)
        else:
            assert self._steps is not None, "a job is opened before its first piece"
            self._steps.carry_out(*details)

    def _opened(self, content: bytes, cwd: Path, counted: frozenset[str] | None) -> Steps:
        if cwd.is_dir():
            os.chdir(cwd)
        job = unpacked(content)
        return Steps(job, RemoteStore(NOWHERE, self._answer, _drop), None, tests_of(job, counted))

    def _answer(self, *question: Any) -> Any:
        """What the first process was told: it asks the same questions in the same order."""
        kind, *content = self._inbox.get()
        if kind != "answer":
            raise RuntimeError(f"asked {question[0]}, which the first process did not ask")
        return content[0]

    def _listen(self) -> None:
        """Receive while the model computes, so that the end of the first process ends this one at once."""
        try:
            while True:
                self._inbox.put(self._wire.receive())
        except (EOFError, OSError):
            os._exit(0)


def _drop(*_write: Any) -> None:
    pass


def follow(port: int, meeting_port: int, rank: int, ranks: int, key: bytes) -> None:
    """Work as one of the others.

    Args:
        port: where the first process passes on what it is told.
        meeting_port: where all of them find each other.
        rank: number of this process, from 1.
        ranks: how many there are.
        key: what both sides prove to each other that they know.
    """
    progress.console.quiet = True
    wire = Wire(Client(("127.0.0.1", port), authkey=key))
    sharding.join(rank, ranks, meeting_port)
    Follower(wire).run()


if __name__ == "__main__":
    PORT, MEETING_PORT, RANK, RANKS = map(int, sys.argv[1:5])
    follow(PORT, MEETING_PORT, RANK, RANKS, bytes.fromhex(sys.stdin.readline()))
