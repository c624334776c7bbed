"""Many calls under way together: progress, an orderly stop, nothing lost that was paid for."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import openai

from harness.judges.cache import Call, Reply
from harness.judges.endpoint import Endpoint, in_words, is_transient
from harness.judges.parsing import grade_of
from harness.judges.prompts import Rubric
from harness.judges.usage import Usage
from harness.progress import Advance, phase, say

_REFUSALS = {401: PermissionError, 403: PermissionError, 404: LookupError}


@dataclass(kw_only=True)
class Batch:
    """The calls of one scoring.

    Args:
        open_endpoint: opens the connection; called inside the event loop.
        keep: is given every reply that holds a grade at once, so that a later error or a kill loses none.
        concurrency: calls under way at once.
        give_up_after: so many calls in a row that failed after all tries stop the rest.
        usage: said at the end.
    """

    open_endpoint: Callable[[], AbstractAsyncContextManager[Endpoint]]
    keep: Callable[[Call, Reply], None]
    concurrency: int
    give_up_after: int
    usage: Usage
    _outcomes: dict[str, Reply | str] = field(default_factory=dict, init=False)
    _stopped: str = field(default="", init=False)
    _refused: Exception | None = field(default=None, init=False)
    _failures_in_a_row: int = field(default=0, init=False)

    def run(self, items: Sequence[tuple[Call, Rubric]]) -> dict[str, Reply | str]:
        """A reply, or the reason why there is none, for the key of every call.

        Raises:
            PermissionError, LookupError: the server refuses the key, does not know the model, or lets another answer.
        """
        _run_to_end(lambda: self._run(items))
        if self._refused:
            raise self._refused
        return self._outcomes

    async def _run(self, items: Sequence[tuple[Call, Rubric]]) -> None:
        queue = iter(items)
        async with self.open_endpoint() as endpoint:
            with phase("judging", len(items), "gradings") as advance:
                workers = min(self.concurrency, len(items))
                await asyncio.gather(*(self._work(endpoint, queue, advance) for _ in range(workers)))
        if items:
            say(f"judging spent {self.usage}")

    async def _work(self, endpoint: Endpoint, queue: Iterator[tuple[Call, Rubric]], advance: Advance) -> None:
        for call, rubric in queue:
            self._outcomes[call.key] = self._stopped or await self._outcome(endpoint, call, rubric)
            advance(1)

    async def _outcome(self, endpoint: Endpoint, call: Call, rubric: Rubric) -> Reply | str:
        try:
            reply = await endpoint.ask(call.prompt, rubric)
        except InterruptedError as error:
            self._stopped = str(error)
            return self._stopped
        except LookupError as error:
            self._stopped, self._refused = str(error), LookupError(f"judge {call.model}: {error}")
            return self._stopped
        except (openai.OpenAIError, TimeoutError, ValueError) as error:
            return self._failure(error, call)
        self._failures_in_a_row = 0
        if grade_of(reply, rubric) is None:
            return reply  # not kept: a mended judge, or the same one on a better day, may give a grade
        try:
            self.keep(call, reply)
        except (sqlite3.Error, OSError) as error:
            return f"the judge's reply could not be kept, {error}"
        return reply

    def _failure(self, error: Exception, call: Call) -> str:
        words = in_words(error)
        if isinstance(error, openai.APIStatusError) and error.status_code in _REFUSALS:
            self._stopped = words
            self._refused = _REFUSALS[error.status_code](f"judge {call.model}: {words}")
        self._failures_in_a_row += is_transient(error)
        if self._failures_in_a_row >= self.give_up_after:
            self._stopped = f"given up after {self._failures_in_a_row} failures in a row, the last: {words}"
        return words


def _run_to_end(work: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a coroutine also where the caller already has an event loop (a notebook): then in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work())
        return
    errors: list[BaseException] = []

    def in_thread() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
