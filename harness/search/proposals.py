"""Proposals: Optuna asked in rounds, replayed exactly after a restart."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from harness.data import Parameters
from harness.steering import Range

Sampler = Literal["tpe", "random", "cmaes", "gp", "qmc", "grid"]


def distribution_of(bounds: Range) -> BaseDistribution:
    """The Optuna distribution of a range."""
    assert bounds.high is not None
    if bounds.integer:
        return IntDistribution(int(bounds.low), int(bounds.high), log=bounds.log)
    return FloatDistribution(bounds.low, bounds.high, log=bounds.log)


def _sampler(name: Sampler, seed: int, startup_trials: int) -> BaseSampler:
    match name:
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup_trials)
        case "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=1)
        case "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup_trials)
        case "qmc":
            with warnings.catch_warnings():  # Optuna calls it experimental at every use
                warnings.simplefilter("ignore", ExperimentalWarning)
                return optuna.samplers.QMCSampler(seed=seed, scramble=True)
        case _:
            return optuna.samplers.RandomSampler(seed=seed)


def grid(ranges: Mapping[str, Range], points: int) -> list[Parameters]:
    """``points`` parameter sets along the diagonal: all parameters at the same share of their range."""
    return [{name: _at(bounds, (i + 0.5) / points) for name, bounds in ranges.items()} for i in range(points)]


def _at(bounds: Range, share: float) -> float:
    assert bounds.high is not None
    if bounds.log:
        value = math.exp(math.log(bounds.low) + share * (math.log(bounds.high) - math.log(bounds.low)))
    else:
        value = bounds.low + share * (bounds.high - bounds.low)
    return round(value) if bounds.integer else value


class Proposer:
    """One study in memory.

    Args:
        ranges: what to search.
        sampler: Optuna's sampler, or ``grid``.
        seed: seed of this study alone.
        num_trials: trials that will be asked for in all.
        startup_trials: random trials before the sampler learns.
        points: parameter sets to propose in this order, before the sampler proposes any.
    """

    def __init__(
        self,
        ranges: Mapping[str, Range],
        sampler: Sampler,
        seed: int,
        num_trials: int,
        startup_trials: int,
        points: Sequence[Parameters] = (),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._distributions = {name: distribution_of(bounds) for name, bounds in ranges.items()}
        self._study = optuna.create_study(direction="maximize", sampler=_sampler(sampler, seed % 2**32, startup_trials))
        self._open: list[optuna.Trial] = []
        for point in points or (grid(ranges, num_trials) if sampler == "grid" else ()):
            self._study.enqueue_trial(point)

    def ask(self, count: int) -> list[Parameters]:
        """The next proposals; they must be told before the next ask."""
        self._open = [self._study.ask(self._distributions) for _ in range(count)]
        return [dict(trial.params) for trial in self._open]

    def tell(self, values: Sequence[float]) -> None:
        """The objectives of the last proposals, in order."""
        for trial, value in zip(self._open, values, strict=True):
            self._study.tell(trial, value)
        self._open = []

    def replay(self, proposals: Sequence[Parameters], values: Sequence[float]) -> None:
        """Bring the study to where it was after these trials of one round.

        The same seed proposes the same parameters; should a newer sampler propose others, what was measured counts.
        """
        asked = self.ask(len(proposals))
        if asked == [dict(proposal) for proposal in proposals]:
            self.tell(values)
            return

        # What the sampler proposes now was never run: it fails, and what was run is added beside it.
        for trial in self._open:
            self._study.tell(trial, state=TrialState.FAIL)
        for proposal, value in zip(proposals, values, strict=True):
            self._study.add_trial(
                optuna.trial.create_trial(params=dict(proposal), distributions=self._distributions, value=value)
            )
