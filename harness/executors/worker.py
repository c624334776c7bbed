"""A worker: holds a model, carries out pieces of jobs, and hands back what they write. It never touches the store.

``python -m harness.executors.worker HOST PORT NUMBER`` starts one, with the key of the connection on stdin.
"""

from __future__ import annotations

import os
import pickle
import queue
import socket
import sys
import threading
import traceback
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

from harness import progress
from harness.executors.executor import Address
from harness.executors.ranks import NOWHERE, Followers
from harness.executors.remote_store import RemoteStore
from harness.executors.usage import spent, usages
from harness.executors.wire import Message, Wire, unpacked
from harness.scoring import Judge
from harness.steps import Steps, tests_of


def work(address: Address, number: int) -> None:
    """Carry out pieces until told to stop; ends the process if the other side is gone.

    Args:
        address: who hands them out.
        number: the place of this worker.
    """
    progress.console.quiet = True  # the other side shows how far all are
    wire = Wire(Client((address.host, address.port), authkey=address.key))
    wire.send("hello", number, socket.gethostname(), os.getpid())
    Worker(wire).run()


class Worker:
    """One job at a time.

    Args:
        wire: to the process that hands out work.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._orders: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._judge = Judge()
        self._followers: Followers | None = None
        self._sharing: Followers | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self) -> None:
        """Carry out what is ordered, one after the other."""
        steps: Steps | None = None
        assignment: Message = ()
        with progress.watched(lambda figures: self._wire.send("figures", dict(figures))):
            while (order := self._orders.get())[0] != "stop":
                if order[0] == "job":
                    steps, assignment = None, order
                    continue
                try:
                    steps = steps or self._opened(*assignment[1:])
                    self._carry_out(steps, *order[1:])
                except Exception as error:  # whatever fails is the job's, and is raised where the job was started
                    self._report(error)

    def _opened(self, content: bytes, folder: Path, cwd: Path, counted: frozenset[str] | None) -> Steps:
        """The job with its model loaded."""
        if cwd.is_dir():  # files of the job may be named from there
            os.chdir(cwd)
        job = unpacked(content)
        self._judge = job.scoring.judge
        ranks = job.model.config.tensor_parallel
        store = RemoteStore(
            folder if ranks == 1 else NOWHERE, self._ask, lambda *write: self._wire.send("write", *write)
        )
        self._sharing = self._share(ranks) if ranks > 1 else None
        with self._together("open", content, cwd, counted):
            return Steps(job, store, None, tests_of(job, counted))

    def _together(self, *order: Any) -> AbstractContextManager[None]:
        """Inside the block, those who hold the model with this process do the same."""
        return self._sharing.doing(*order) if self._sharing is not None else nullcontext()

    def _share(self, ranks: int) -> Followers:
        """The processes that hold the model together with this one."""
        if self._followers is None:
            self._followers = Followers(ranks)
        if self._followers.ranks != ranks:  # torch cannot let processes meet anew: another worker begins with these
            os._exit(1)
        return self._followers

    def _carry_out(self, steps: Steps, name: str, arguments: tuple[Any, ...]) -> None:
        before = usages(self._judge)
        with self._together("step", name, arguments):
            result = steps.carry_out(name, arguments, lambda count: self._wire.send("advance", count))
        self._wire.send("done", result, spent(before, usages(self._judge)))

    def _report(self, error: Exception) -> None:
        """Hand an error back as it is, or, if it cannot be sent, in words."""
        error.add_note(f"in a worker on {socket.gethostname()}:\n{traceback.format_exc()}")
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # classes of errors that others wrote may do anything here
            error = RuntimeError(f"{type(error).__name__}: {error}")
        self._wire.send("failed", error)

    def _ask(self, *question: Any) -> Any:
        self._wire.send("ask", *question)
        answer = self._answers.get()
        if self._sharing is not None:
            self._sharing.answer(answer)
        return answer

    def _listen(self) -> None:
        """Receive while the model computes, so that a lost connection ends this process at once."""
        try:
            while True:
                message = self._wire.receive()
                if message[0] == "answer":
                    self._answers.put(message[1])
                else:
                    self._orders.put(message)
        except (EOFError, OSError):
            os._exit(0)


if __name__ == "__main__":
    work(Address(sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.stdin.readline())), int(sys.argv[3]))
