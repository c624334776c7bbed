"""What a judge's calls cost, and the limits on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_CHARACTERS_PER_TOKEN = 4.0  # English prose; only for estimates made before the server has counted
_DATED = re.compile(r"-\d{4}-\d{2}-\d{2}\Z")


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens."""

    input: float
    output: float

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """US dollars for so many tokens."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


def price_of(model: str, prices: Mapping[str, Mapping[str, float]]) -> Price | None:
    """The price of a model, by its name or its name without a date; None if the table does not hold it.

    Raises:
        ValueError: an entry of the table is not ``{input: dollars, output: dollars}``.
    """
    entry = prices.get(model, prices.get(_DATED.sub("", model)))
    if entry is None:
        return None
    if set(entry) != {"input", "output"} or min(entry.values()) < 0:
        form = "{input: DOLLARS, output: DOLLARS}"
        raise ValueError(f"judge.prices.{model} must be {form} per million tokens, got {dict(entry)}")
    return Price(float(entry["input"]), float(entry["output"]))


def dollars(cost: float | None) -> str:
    """A cost in words."""
    return "unknown" if cost is None else f"${cost:.4f}" if cost < 1 else f"${cost:.2f}"


@dataclass(frozen=True)
class Forecast:
    """What a scoring would need, before its first call. ``cost`` is None if the price is unknown."""

    num_gradings: int
    num_cached: int
    num_calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None

    def __str__(self) -> str:
        """One line for the user."""
        if not self.num_calls:
            return (
                f"{self.num_gradings} gradings: {self.num_cached} from the cache, no calls, price {dollars(self.cost)}"
            )
        return (
            f"{self.num_gradings} gradings: {self.num_cached} from the cache, {self.num_calls} calls, about "
            f"{self.prompt_tokens:,} tokens in and at most {self.completion_tokens:,} out, price {dollars(self.cost)}"
        )


def forecast(num_gradings: int, num_cached: int, prompts: list[str], max_tokens: int, price: Price | None) -> Forecast:
    """Tokens and price of sending these prompts, from their number of characters."""
    tokens_in = round(sum(map(len, prompts)) / _CHARACTERS_PER_TOKEN)
    tokens_out = len(prompts) * max_tokens
    cost = price.cost(tokens_in, tokens_out) if price else None
    return Forecast(num_gradings, num_cached, len(prompts), tokens_in, tokens_out, cost)


@dataclass
class Usage:
    """What was used since the judge was made.

    ``calls`` counts every request sent, repeats included. ``possible_cost`` is what requests without an answer
    (time-outs, lost connections) may have cost on top of ``cost``: the server may have done the work.
    """

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0
    possible_cost: float = 0.0

    def __str__(self) -> str:
        """What was spent, for the user."""
        more = f" and up to {dollars(self.possible_cost)} for calls without an answer" if self.possible_cost else ""
        return f"{dollars(self.cost)}{more}"


class Budget:
    """Lets calls through until a limit would be passed.

    A call reserves its expected cost first, so that calls under way at the same time cannot pass the limit together.

    Args:
        usage: what was used; updated by `settle`.
        price: of the model, None if unknown.
        max_calls: number of requests allowed, None for no limit.
        max_cost: US dollars allowed, None for no limit.
    """

    def __init__(self, usage: Usage, price: Price | None, max_calls: int | None, max_cost: float | None) -> None:
        """Start with nothing reserved."""
        self.usage, self.price, self.max_calls, self.max_cost = usage, price, max_calls, max_cost
        self._reserved = 0.0
        self._tokens_per_character = 1 / _CHARACTERS_PER_TOKEN

    def reserve(self, prompt: str, max_tokens: int) -> float:
        """Count one call and set its expected cost aside; give the cost back to `settle`.

        Raises:
            InterruptedError: the call would pass a limit; it must not be made.
        """
        expected = self.price.cost(len(prompt) * self._tokens_per_character, max_tokens) if self.price else 0.0
        if self.max_calls is not None and self.usage.calls >= self.max_calls:
            raise InterruptedError(f"stopped at max_calls={self.max_calls}")
        spent = (self.usage.cost or 0.0) + self.usage.possible_cost
        if self.max_cost is not None and spent + self._reserved + expected > self.max_cost:
            raise InterruptedError(f"stopped at max_cost={self.max_cost} dollars with {self.usage} spent")
        self.usage.calls += 1
        self._reserved += expected
        return expected

    def settle(self, expected: float, prompt: str = "", prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Replace a reservation by what the call really used (nothing, for a call that the server refused)."""
        self._reserved -= expected
        self.usage.prompt_tokens += prompt_tokens
        self.usage.completion_tokens += completion_tokens
        if prompt and prompt_tokens:
            self._tokens_per_character = max(self._tokens_per_character, prompt_tokens / len(prompt))
        if self.price is None:
            self.usage.cost = None
        elif self.usage.cost is not None:
            self.usage.cost += self.price.cost(prompt_tokens, completion_tokens)

    def settle_unanswered(self, expected: float) -> None:
        """Turn a reservation into a possible cost: the call went out, and nothing came back."""
        self._reserved -= expected
        self.usage.possible_cost += expected
