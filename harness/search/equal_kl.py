"""One strength for all, at which every method disturbs the model equally."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.data import Example, Parameters
from harness.receipt import prompt_end_kl
from harness.search.search import Prepared, Search, Selection, Setting, run_all
from harness.steering import Layout, Method, Range
from harness.workbench import Request, Workbench


@dataclass(frozen=True, kw_only=True)
class EqualKL(Search):
    """Scales a method's strengths until it moves the next-token distribution by a given amount.

    All parameters lie on the line from the method's null (factor 0) through its defaults (factor 1); those that are the
    same at both ends, such as a layer, stay. Bisection finds a factor at which the mean divergence of steered from
    un-steered at the prompt's end, over dev prompts, is ``target_kl``. No answer and no objective is used, so a method
    that needs no gold stays deployable. The steps are kept in ``equal_kl.json`` beside the generations.

    Args:
        target_kl: mean Kullback-Leibler divergence in nats, above 0.
        tolerance: accepted distance from the target, as a share of it.
        max_steps: halvings of the interval, at most.
        max_factor: end of the line, in multiples of the defaults; a parameter with a range ends at its range already.
        dev_examples: dev items to use, at most; None for all.
    """

    uses_dev: ClassVar[bool] = True
    target_kl: float
    tolerance: float
    max_steps: int
    max_factor: float
    dev_examples: int | None = None

    def check(self, method: Method, layout: Layout) -> None:
        """Raise ValueError for settings out of range, or a method whose strengths cannot be turned down to nothing."""
        if not 0 < self.target_kl < math.inf:
            raise ValueError(f"search.target_kl must be above 0 nats, got {self.target_kl}")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"search.tolerance must be between 0 and 1, got {self.tolerance}")
        if self.max_steps < 1 or not self.max_factor > 0:
            raise ValueError(
                "search.max_steps must be at least 1 and search.max_factor above 0, "
                f"got {self.max_steps} and {self.max_factor}"
            )
        if self.dev_examples is not None and self.dev_examples < 1:
            raise ValueError(f"search.dev_examples must be at least 1, got {self.dev_examples}")

        Line.of(method, layout, self.max_factor)

    def prepare(self, bench: Workbench, dev: Sequence[Example], setting: Setting) -> Parameters:
        """The calibrated parameter set; after a restart, the one that was found before.

        Raises:
            ValueError: even the end of the line disturbs the model less than wanted, or what it does is no number.
        """
        if not bench.steers:
            return {}
        line = Line.of(bench.method, bench.subject.layout, self.max_factor)
        calibration = setting.store.note("equal_kl")
        if calibration is None:
            calibration = self._calibrate(line, bench, dev[: self.dev_examples])
            setting.store.save_note("equal_kl", calibration)
        setting.note("dev calibration")
        return line.at(calibration["factor"])

    def _calibrate(self, line: Line, bench: Workbench, dev: Sequence[Example]) -> dict:
        def mean_kl(factor: float) -> float:
            mean = float(prompt_end_kl(bench, [Request(example, line.at(factor)) for example in dev]).mean())
            if not math.isfinite(mean):
                raise ValueError(f"search=equal_kl: hidden states are not numbers at {factor:.3g} times the defaults")
            steps.append({"factor": factor, "mean_kl": mean})
            return mean

        # Bisection, which takes the divergence to grow with the strength, from nothing at factor 0.
        steps: list[dict[str, float]] = []
        low, high = 0.0, line.end
        reached = mean_kl(high)
        if reached < self.target_kl * (1 - self.tolerance):
            raise ValueError(
                f"search=equal_kl: mean KL is only {reached:.4g} nats at the largest strength "
                f"({_spelt(line.at(high))}); lower search.target_kl={self.target_kl:g} or widen the ranges"
            )

        factor = high
        while abs(reached - self.target_kl) > self.tolerance * self.target_kl and len(steps) <= self.max_steps:
            factor = (low + high) / 2
            reached = mean_kl(factor)
            low, high = (factor, high) if reached < self.target_kl else (low, factor)
        return {"target_kl": self.target_kl, "factor": factor, "mean_kl": reached, "dev": len(dev), "steps": steps}

    def select(
        self, bench: Workbench, examples: Sequence[Example], prepared: Prepared, setting: Setting
    ) -> list[Selection]:
        """Run every test item once with the calibrated set."""
        return run_all(bench, examples, prepared, setting)


@dataclass(frozen=True)
class Line:
    """Parameter sets from no steering to the strongest, all strengths in the proportion of their defaults."""

    null: Parameters
    defaults: Parameters
    end: float
    """The largest factor."""

    @classmethod
    def of(cls, method: Method, layout: Layout, max_factor: float) -> Line:
        """The line of a method.

        Raises:
            ValueError: the method has no null, or its defaults are the null.
        """
        known, null, defaults = method.parameters(layout), method.null(layout), method.defaults(layout)
        kind = type(method).__name__
        if not known:
            raise ValueError(f"search=equal_kl needs a method with a strength; {kind} has no parameters")
        if null is None:
            raise ValueError(
                f"search=equal_kl needs a method that can be turned down to nothing; {kind} has no such parameters: "
                "use search=fixed or search=dev_split"
            )

        moving = {name: defaults[name] - null[name] for name in known if defaults[name] != null[name]}
        if not moving:
            raise ValueError(f"search=equal_kl scales the defaults of {kind}, which are no steering at all: raise them")
        ends = [_room(known[name], null[name], step) for name, step in moving.items()]
        return cls(null, defaults, min([max_factor, *ends]))

    def at(self, factor: float) -> Parameters:
        """The parameters at a factor: 0 is the null, 1 the defaults."""
        return {name: null + factor * (self.defaults[name] - null) for name, null in self.null.items()}


def _room(parameter: float | Range, null: float, step: float) -> float:
    if not isinstance(parameter, Range):
        return math.inf
    bound = parameter.high if step > 0 else parameter.low
    return math.inf if bound is None else (bound - null) / step


def _spelt(parameters: Parameters) -> str:
    return ", ".join(f"{name}={value:.4g}" for name, value in parameters.items())
