"""One call to an OpenAI-compatible endpoint: time-out, retries, structured replies where the server has them."""

from __future__ import annotations

import asyncio
import email.utils
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
    _schema_refused: bool = field(default=False, init=False)

    async def ask(self, prompt: str, rubric: Rubric) -> Reply:
        """The model's reply.

        Raises:
            InterruptedError: the budget is spent.
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
        wanted = {"type": "json_schema", "json_schema": schema}
        try:
            return await self._attempt(prompt, wanted)
        except openai.APIStatusError as error:
            if self.structured == "always" or error.status_code not in _REFUSED_SCHEMA:
                raise
        reply = await self._attempt(prompt, None)
        self._schema_refused = True  # only now is it known that the schema was what the server refused
        return reply

    async def _attempt(self, prompt: str, response_format: dict[str, Any] | None) -> Reply:
        expected = self.budget.reserve(prompt, self.max_tokens)
        tokens_in = tokens_out = 0
        try:
            extra = {"response_format": response_format} if response_format else {}
            async with asyncio.timeout(self.timeout):
                completion = await self.client.chat.completions.create(
                    model=self.model, messages=[{"role": "user", "content": prompt}], **self.sampling, **extra
                )
            reply = _checked(completion, bool(response_format))
            tokens_in, tokens_out = reply.details["prompt_tokens"], reply.details["completion_tokens"]
            return reply
        finally:
            self.budget.settle(expected, prompt, tokens_in, tokens_out)

    def _worth_waiting(self, error: BaseException) -> bool:
        return is_transient(error) and (retry_after(error) or 0.0) <= self.longest_wait

    def _wait(self, state: RetryCallState) -> float:
        """What the server asks for, else exponential back-off with jitter."""
        asked = retry_after(state.outcome.exception() if state.outcome else None)
        backoff = wait_random_exponential(multiplier=0.5, max=self.longest_wait)
        return backoff(state) if asked is None else asked


def _checked(completion: ChatCompletion, structured: bool) -> Reply:
    if not isinstance(completion, ChatCompletion) or not completion.choices:
        raise ValueError(f"the server sent no chat completion but {str(completion)[:200]!r}")
    choice = completion.choices[0]
    usage = completion.usage
    details = {
        "served_model": completion.model,
        "fingerprint": completion.system_fingerprint,
        "finish": choice.finish_reason,
        "structured": structured,
        "prompt_tokens": usage.prompt_tokens if usage else 0,
        "completion_tokens": usage.completion_tokens if usage else 0,
    }
    return Reply(choice.message.content or "", details)


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
    date = email.utils.parsedate_to_datetime(headers["retry-after"]) if "retry-after" in headers else None
    return max(0.0, date.timestamp() - time.time()) if date else None


def in_words(error: BaseException) -> str:
    """What went wrong, with the server's own words where it said any."""
    if isinstance(error, openai.APIStatusError):
        body = error.body
        said = body.get("message") if isinstance(body, dict) else body
        said = said or (body.get("detail") if isinstance(body, dict) else None) or error.response.text
        asked = retry_after(error)
        wait = f" (asks to wait {asked:.0f} s)" if asked else ""
        return f"HTTP {error.status_code}: {' '.join(str(said).split())[:300]}{wait}"
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return "no answer within the time-out"
    if isinstance(error, openai.APIConnectionError):
        return f"no connection: {error.__cause__ or error.message}"
    return f"{error}"
