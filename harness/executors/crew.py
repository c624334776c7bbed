"""The workers of an executor: pieces out, what they write into the store in order, and what a lost one had, once more.

Workers connect to this process, whoever started them. What they are sent is a job, then the names of its pieces; what
they send are the lines that they would write. This process alone writes, and it loads no weights.
"""

from __future__ import annotations

import atexit
import queue
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from harness import progress
from harness.executors.executor import Address, Executor, Started
from harness.executors.hands import Hands, OwnHands
from harness.executors.usage import add_usages
from harness.executors.wire import Message, Wire, packed
from harness.job import Job
from harness.progress import Advance
from harness.records.store import GenerationStore
from harness.steps import Steps, tests_of

MOST_LOSSES = 3
"""So many workers may be lost in a row over one piece, or before any could begin."""
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, eq=False)
class Assignment:
    """A job whose pieces are to be carried out.

    Args:
        job: what to do.
        store: where everything is written.
        source: where the fitted tensors lie, if they are another job's.
        counted: ids of the test items that count; None: all.
    """

    job: Job
    store: GenerationStore
    source: GenerationStore | None
    counted: Collection[str] | None


def hands_for(assignment: Assignment) -> Hands:
    """Who carries out the pieces of a job: this process, or the workers of its executor.

    Raises:
        ValueError: workers cannot load the model.
    """
    job = assignment.job
    if job.executor.is_here:
        return OwnHands(Steps(job, assignment.store, assignment.source, tests_of(job, assignment.counted)))
    if job.model.identity.startswith("memory:"):
        raise ValueError(f"executor={job.executor.name}: workers cannot load a model that was handed over in memory")
    name = repr(job.executor)
    if name not in _crews:
        dismiss_crews()
        _crews[name] = Crew(job.executor)
    return Shift(_crews[name], assignment)


_crews: dict[str, Crew] = {}
"""The crew of the last job, kept for the next one, for its workers hold a loaded model."""


@atexit.register
def dismiss_crews() -> None:
    """End all workers."""
    while _crews:
        _crews.popitem()[1].close()


class Member:
    """A worker that has connected.

    Args:
        wire: to it.
        number: its place in the crew.
        place: its machine and process, for messages.
    """

    def __init__(self, wire: Wire, number: int, place: str) -> None:
        self.wire, self.number, self.place = wire, number, place
        self.knows: Shift | None = None


class Crew:
    """Workers of one executor, started at once and started again when they are lost.

    Args:
        executor: who starts them.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.members: list[Member] = []
        self.failures = 0
        self._inbox: queue.SimpleQueue[tuple[Member, Message]] = queue.SimpleQueue()
        self._closed, self._looked = False, time.monotonic()
        self._key = secrets.token_bytes(32)
        self._listener = Listener(("" if executor.any_machine else "127.0.0.1", 0), backlog=64, authkey=self._key)
        threading.Thread(target=self._accept, daemon=True).start()

        # Those that did start must end if a later one cannot.
        self._started: dict[int, Started] = {}
        try:
            self.address = Address(executor.host, self._listener.address[1], self._key)
            for number in range(executor.count):
                self._started[number] = executor.start(number, self.address)
        except BaseException:
            self.close()
            raise

    def next_message(self) -> tuple[Member, Message] | None:
        """What a worker says next; None after a while of silence.

        Raises:
            RuntimeError: workers end before they can begin.
        """
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._look_after_starting()
        try:
            member, message = self._inbox.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            return None
        if message[0] == "hello":
            self.members.append(member)
        elif message[0] == "lost":
            self.members.remove(member)
            progress.say(f"lost {member.place}; another worker does its work once more")
            self._start_again(member.number)
        return member, message

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        if self._closed:
            return
        self._closed = True
        _crews.pop(repr(self.executor), None)
        for member in self.members:
            with suppress(OSError):
                member.wire.send("stop")
        for started in self._started.values():
            started.stop()
        with suppress(OSError, AuthenticationError, EOFError):  # the thread that accepts waits for somebody to connect
            Client(self._listener.address, authkey=self._key).close()
        self.executor.close()

    def _start_again(self, number: int) -> None:
        self._started[number].stop()
        if not self._closed:
            self._started[number] = self.executor.start(number, self.address)

    def _look_after_starting(self) -> None:
        """Start those again that ended before they connected."""
        self._looked = time.monotonic()
        connected = {member.number for member in self.members}
        for number, started in list(self._started.items()):
            if number in connected or (reason := started.ended()) is None:
                continue
            self.failures += 1
            if self.failures >= MOST_LOSSES:
                self.close()
                raise RuntimeError(f"executor={self.executor.name}: workers end before they can begin: {reason}")
            self._start_again(number)

    def _accept(self) -> None:
        with self._listener:
            while not self._closed:
                try:
                    connection = self._listener.accept()
                except (AuthenticationError, EOFError, OSError):  # somebody else knocked, or hung up at once
                    continue
                threading.Thread(target=self._listen, args=(connection,), daemon=True).start()

    def _listen(self, connection: Connection) -> None:
        """Collect what one worker says until it is gone."""
        wire, member = Wire(connection), None
        try:
            _hello, number, host, process = wire.receive()
            member = Member(wire, number, f"the worker on {host} (process {process})")
            self._inbox.put((member, ("hello",)))
            while True:
                self._inbox.put((member, wire.receive()))
        except (EOFError, OSError):
            wire.close()
            if member is not None:
                self._inbox.put((member, ("lost",)))


class Shift:
    """A crew at work on one job. Implements `Hands`.

    Args:
        crew: the workers.
        assignment: the job.
    """

    def __init__(self, crew: Crew, assignment: Assignment) -> None:
        self._crew, self._assignment = crew, assignment
        counted = None if assignment.counted is None else frozenset(assignment.counted)
        folder = assignment.store.folder.absolute()
        self._order = ("job", packed(assignment.job), folder, Path.cwd(), counted)

    def do(self, name: str, *arguments: Any, advance: Advance = lambda _count: None) -> Any:
        """See `Hands`. The piece of a lost worker goes on from what is in the store, as after a restart."""
        return _Round(self._crew, self, name, [arguments], advance, at_once=True).run()[0]

    def do_all(self, name: str, each: Sequence[Any], advance: Advance = lambda _count: None) -> None:
        """See `Hands`. Nothing is written of a piece whose worker was lost."""
        _Round(self._crew, self, name, [(argument,) for argument in each], advance, at_once=False).run()

    def hand(self, member: Member, name: str, arguments: tuple[Any, ...]) -> None:
        """Give a worker a piece, and before it the job, if it does not know it."""
        with suppress(OSError):  # it is lost, and its loss is on its way
            if member.knows is not self:
                member.wire.send(*self._order)
                member.knows = self
            member.wire.send("step", name, arguments)

    def write(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Have the store do what a worker asked for."""
        getattr(self._assignment.store, name)(*arguments)

    def answer(self, member: Member, name: str, arguments: tuple[Any, ...]) -> None:
        """Tell a worker what the store holds."""
        assignment = self._assignment
        store = assignment.source or assignment.store if name == "artifact" else assignment.store
        value = getattr(store, name)
        value = value(*arguments) if callable(value) else value
        with suppress(OSError):
            member.wire.send("answer", list(value) if name == "trials" else value)

    def count_judging(self, used: Sequence[Any]) -> None:
        """Count what the job's judge used in a worker."""
        add_usages(self._assignment.job.scoring.judge, used)


class _Round:
    """One piece, or many of a kind, over all workers.

    Args:
        crew: the workers.
        shift: the job.
        name: of the piece.
        each: arguments of each.
        advance: is told of finished trials.
        at_once: write what comes as it comes, in place of whole pieces in their order.
    """

    def __init__(
        self, crew: Crew, shift: Shift, name: str, each: Sequence[tuple[Any, ...]], advance: Advance, *, at_once: bool
    ) -> None:
        self._crew, self._shift, self._name, self._each = crew, shift, name, each
        self._advance, self._at_once = advance, at_once
        self._waiting = deque(range(len(each)))
        self._running: dict[Member, int] = {}
        self._losses: Counter[int] = Counter()
        self._writes: dict[int, list[Message]] = {}
        self._results: dict[int, Any] = {}
        self._written = 0

    def run(self) -> list[Any]:
        """Carry out all of them, and return their results in order."""
        if self._each and not self._crew.members:
            progress.say(f"waits for the first of {self._crew.executor.count} workers")
        try:
            while len(self._results) < len(self._each):
                self._hand_out()
                heard = self._crew.next_message()
                if heard is not None:
                    self._take(*heard)
        except BaseException:
            if self._running:  # they would go on with what nobody wants any more
                self._crew.close()
            raise
        return [self._results[index] for index in range(len(self._each))]

    def _hand_out(self) -> None:
        for member in self._crew.members:
            if self._waiting and member not in self._running:
                index = self._running[member] = self._waiting.popleft()
                self._shift.hand(member, self._name, self._each[index])

    def _take(self, member: Member, message: Message) -> None:
        """Act on what a worker says; what it writes waits until its piece of work is done, unless told otherwise."""
        match message:
            case ("lost",):
                self._do_again(member)
            case ("ask", name, *arguments):
                self._shift.answer(member, name, tuple(arguments))
            case ("write", name, *arguments) if self._at_once:
                self._shift.write(name, tuple(arguments))
            case ("write", *write):
                self._writes.setdefault(self._running[member], []).append(tuple(write))
            case ("advance", count):
                self._advance(count)
            case ("figures", figures):
                progress.report(figures)
            case ("failed", error):
                del self._running[member]
                raise error
            case ("done", result, used):
                self._finish(member, result, used)

    def _do_again(self, member: Member) -> None:
        """Put back what a lost worker had, as if it had never been begun."""
        if member not in self._running:
            return
        index = self._running.pop(member)
        self._losses[index] += 1
        if self._losses[index] >= MOST_LOSSES:
            raise RuntimeError(
                f"{MOST_LOSSES} workers in a row were lost over one piece of work ({self._name}), the last was "
                f"{member.place}: it may need more memory than they have"
            )
        self._writes.pop(index, None)
        self._waiting.appendleft(index)

    def _finish(self, member: Member, result: Any, used: Sequence[Any]) -> None:
        """Note a result, and write whatever is whole and next in order."""
        index = self._running.pop(member)
        self._results[index] = result
        self._crew.failures = 0
        self._shift.count_judging(used)
        while self._written in self._results:
            for name, *arguments in self._writes.pop(self._written, []):
                self._shift.write(name, tuple(arguments))
            self._written += 1
