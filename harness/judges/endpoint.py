"""One call to an OpenAI-compatible endpoint: time-out, retries, structured replies where the server has them."""

from __future__ import annotations

import asyncio
import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import openai
from openai.types.chat import ChatCompletion
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from harness.judges.cache import Reply
from harness.judges.parsing import reply_schema
from harness.judges.prompts import Rubric
from harness.judges.usage import Budget

Structured = Literal["auto", "always", "never"]
_TRANSIENT_STATUS = frozenset({408, 409, 425, 429})
_REFUSED_SCHEMA = frozenset({400, 422})
_TAG = re.compile(r"-\d{4}-\d{2}-\d{2}|-\d{4,8}|[:@][\w.-]+|-latest")


@dataclass(kw_only=True)
class Endpoint:
    """Sends prompts to one model through one open client.

    Args:
        client: the open client; its own retries must be off.
        model: the model's name at the server.
        sampling: request fields that every call carries (temperature, seed, token limit).
        max_tokens: longest reply that is expected, for the budget.
        structured: ask for JSON that fits a schema: until the server refuses it, always, or never.
        timeout: seconds for one attempt, from sending to the last byte.
        attempts: tries in all for errors that may pass.
        longest_wait: seconds to wait between tries at most; a server that asks for more is not asked again.
        budget: consulted before every attempt.
        served_as: another name that the server may give the model in its replies; "" for none.
    """

    client: openai.AsyncOpenAI
    model: str
    sampling: Mapping[str, Any]
    max_tokens: int
    structured: Structured
    timeout: float
    attempts: int
    longest_wait: float
    budget: Budget
    served_as: str = ""
    _schema_refused: bool = field(default=False, init=False)

    async def ask(self, prompt: str, rubric: Rubric) -> Reply:
        """The model's reply.

        Raises:
            InterruptedError: the budget is spent.
            LookupError: another model answered than was asked for.
            openai.OpenAIError, TimeoutError, ValueError: the last try failed, or the first with an error that stays.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.attempts),
            retry=retry_if_exception(self._worth_waiting),
            wait=self._wait,
            reraise=True,
        )
        return await retrying(self._ask_with_fallback, prompt, rubric)

    async def _ask_with_fallback(self, prompt: str, rubric: Rubric) -> Reply:
        if self.structured == "never" or self._schema_refused:
            return await self._attempt(prompt, None)
        schema = {"name": "grade", "strict": True, "schema": reply_schema(rubric)}
        response_format = {"type": "json_schema", "json_schema": schema}
        try:
            return await self._attempt(prompt, response_format)
        except openai.APIStatusError as error:
            if self.structured == "always" or error.status_code not in _REFUSED_SCHEMA:
                raise
        reply = await self._attempt(prompt, None)
        self._schema_refused = True  # only now is it known that the schema was what the server refused
        return reply

    async def _attempt(self, prompt: str, response_format: dict[str, Any] | None) -> Reply:
        expected = self.budget.reserve(prompt, self.max_tokens)
        extra: dict[str, Any] = {"response_format": response_format} if response_format else {}

        # However the call ends, what was reserved for it is settled.
        try:
            async with asyncio.timeout(self.timeout):
                completion = await self.client.chat.completions.create(
                    model=self.model, messages=[{"role": "user", "content": prompt}], **self.sampling, **extra
                )
        except (openai.APIConnectionError, TimeoutError, asyncio.CancelledError):
            self.budget.settle_unanswered(expected)
            raise
        except BaseException:
            self.budget.settle(expected)
            raise

        tokens_in, tokens_out = _tokens(completion)
        self.budget.settle(expected, prompt, tokens_in, tokens_out)
        reply = _checked(completion, bool(response_format))
        self._check_model(str(reply.details["served_model"] or ""))
        return reply

    def _check_model(self, served: str) -> None:
        """Dated and tagged names ("small-2025-04-14", "small:latest", "vendor/small") are the same model."""
        names = {name.lower() for name in (self.model, self.served_as) if name}
        bare = served.lower()
        if bare and not any(bare == name or _is_variant(bare, name) for name in names):
            raise LookupError(
                f"asked for the model {self.model}, but {served} answered; set judge.served_as={served} if they are one"
            )

    def _worth_waiting(self, error: BaseException) -> bool:
        return is_transient(error) and (retry_after(error) or 0.0) <= self.longest_wait

    def _wait(self, state: RetryCallState) -> float:
        """What the server asks for, else exponential back-off with jitter."""
        asked = retry_after(state.outcome.exception() if state.outcome else None)
        backoff = wait_random_exponential(multiplier=0.5, max=self.longest_wait)
        return backoff(state) if asked is None else asked


def _is_variant(served: str, asked: str) -> bool:
    """Whether a name is another one with a date, version tag or vendor."""
    short_served, short_asked = served.rpartition("/")[2], asked.rpartition("/")[2]
    suffix = short_served.removeprefix(short_asked)
    return not suffix or (suffix != short_served and bool(_TAG.fullmatch(suffix)))


def _tokens(completion: object) -> tuple[int, int]:
    usage = getattr(completion, "usage", None)
    counts = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    tokens_in, tokens_out = (count if isinstance(count, int) else 0 for count in counts)
    return tokens_in, tokens_out


def _checked(completion: object, structured: bool) -> Reply:
    """The reply in a completion.

    Raises:
        ValueError: it is none, or holds no text. The client checks nothing of what a server sends.
    """
    choices = getattr(completion, "choices", None)
    if not isinstance(completion, ChatCompletion) or not isinstance(choices, list) or not choices:
        raise ValueError(f"the server sent no chat completion but {str(completion)[:200]!r}")

    choice = choices[0]
    message = getattr(choice, "message", None)
    text = getattr(message, "content", None)
    if message is None or not isinstance(text, str | None):
        raise ValueError(
            f"the server sent no text as the model's message but {str(text if message else message)[:200]}"
        )

    tokens_in, tokens_out = _tokens(completion)
    details = {
        "served_model": completion.model,
        "fingerprint": completion.system_fingerprint,
        "finish": choice.finish_reason,
        "structured": structured,
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
    }
    return Reply(text or "", details)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later."""
    if isinstance(error, openai.APIStatusError):
        spent = error.code == "insufficient_quota"  # sent as 429, but waiting does not fill an account
        return not spent and (error.status_code in _TRANSIENT_STATUS or error.status_code >= 500)
    broken_reply = isinstance(error, openai.APIResponseValidationError | ValueError)
    return broken_reply or isinstance(error, openai.APIConnectionError | TimeoutError)


def retry_after(error: BaseException | None) -> float | None:
    """Seconds that the server asks to wait, from ``retry-after-ms`` or ``Retry-After`` (seconds or a date)."""
    if not isinstance(error, openai.APIStatusError):
        return None
    headers = error.response.headers
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) / unit)
        except (KeyError, ValueError):
            continue
    try:
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None  # no header, or one that means nothing: an error like any other
    return max(0.0, date.timestamp() - time.time())


def in_words(error: BaseException) -> str:
    """What went wrong, with the server's own words where it said any."""
    if isinstance(error, openai.APIStatusError):
        body = error.body
        message = body.get("message") if isinstance(body, dict) else body
        message = message or (body.get("detail") if isinstance(body, dict) else None) or error.response.text
        asked = retry_after(error)
        wait = f" (asks to wait {asked:.0f} s)" if asked else ""
        return f"HTTP {error.status_code}: {' '.join(str(message).split())[:300]}{wait}"

    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return "no answer within the time-out"
    if isinstance(error, openai.APIConnectionError):
        return f"no connection: {error.__cause__ or error.message}"
    return f"{error}"
