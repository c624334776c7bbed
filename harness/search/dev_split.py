"""One parameter set for all test items, or one for each group, chosen on the dev split."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from harness.control import stable_seed
from harness.data import Example, Parameters
from harness.records.rows import Trial
from harness.scoring import Generation
from harness.search.objective import Objective
from harness.search.per_prompt import check_budget
from harness.search.proposals import Proposer, Sampler
from harness.search.search import Prepared, Search, Selection, Setting, check_positive, run_each, searchable
from harness.steering import Layout, Method, Range
from harness.workbench import Request, Workbench


@dataclass
class _Study:
    """The search for one parameter set.

    Args:
        dev: the items it is chosen on.
        proposer: proposes sets.
        means: every set tried so far, with its mean objective.
    """

    dev: Sequence[Example]
    proposer: Proposer
    means: list[tuple[Parameters, float]] = field(default_factory=list)

    @property
    def best(self) -> Parameters:
        """The set with the highest mean, the first of equals."""
        return dict(max(self.means, key=lambda pair: pair[1])[0])


@dataclass(frozen=True, kw_only=True)
class DevSplit(Search):
    """The best of N parameter sets on the dev split, then used unchanged on every test item.

    The test items' answers are never seen, so a method that needs no gold stays deployable. The un-steered model is not
    among the candidates: whether steering helps at all is the comparison's question. Of equal sets the first wins.

    Args:
        num_trials: parameter sets to try.
        trials_per_round: proposals between two updates of the sampler; they run in one pool.
        sampler: as in `PerPrompt`.
        startup_trials: random trials before the sampler learns.
        dev_examples: dev items to use, at most; None for all.
        per_group: search for a set of its own for every group (concept, behaviour), on the dev items of that group (or
            of that `Example.tuning`); the other numbers then hold for each group. All groups search side by side.
        values: the values to try of each parameter, in every combination, in place of what the sampler proposes.
    """

    needs_objective: ClassVar[bool] = True
    uses_dev: ClassVar[bool] = True
    num_trials: int
    trials_per_round: int
    sampler: Sampler
    startup_trials: int
    dev_examples: int | None = None
    per_group: bool = False
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def check(self, method: Method, layout: Layout) -> None:
        """Raise ValueError for a budget, sampler or values that cannot work."""
        check_budget(self.num_trials, self.trials_per_round, self.startup_trials)
        if self.dev_examples is not None:
            check_positive("dev_examples", self.dev_examples)
        if self.values and method.steers:
            self._check_values(method, layout)

    def _check_values(self, method: Method, layout: Layout) -> None:
        ranges = {name: value for name, value in method.parameters(layout).items() if isinstance(value, Range)}
        if set(ranges) != set(self.values) or not all(self.values.values()):
            raise ValueError(
                f"search.values must hold values for all of {', '.join(sorted(ranges)) or 'no parameter'}, which the "
                f"method leaves open, and for nothing else; got {dict(self.values)}"
            )

        for name, bounds in ranges.items():
            outside = [value for value in self.values[name] if not bounds.low <= value <= (bounds.high or math.inf)]
            if outside:
                raise ValueError(
                    f"search.values: {name} must lie between {bounds.low:g} and {bounds.high:g} "
                    f"(method.{name}.low, .high), got {', '.join(map(str, outside))}"
                )

    @property
    def _budget(self) -> int:
        """Parameter sets that are tried."""
        return math.prod(map(len, self.values.values())) if self.values else self.num_trials

    @property
    def _points(self) -> list[Parameters]:
        """Every combination of the given values, the last parameter's changing fastest."""
        combinations = itertools.product(*self.values.values()) if self.values else ()
        return [dict(zip(self.values, map(float, values), strict=True)) for values in combinations]

    def num_dev_trials_of(self, num_dev: int) -> int:
        """Every parameter set on every dev item that is used; with ``per_group`` at most that."""
        limited = self.dev_examples is not None and not self.per_group
        return self._budget * (min(num_dev, self.dev_examples or 0) if limited else num_dev)

    def prepare(self, bench: Workbench, dev: Sequence[Example], setting: Setting) -> Prepared:
        """Search the dev split; trials on disk are replayed. Returns the set, or with ``per_group`` one per group.

        Raises:
            ValueError: the task has no dev items, or none of a group that is tested.
        """
        ranges, fixed = searchable(bench)
        if not ranges:
            return fixed
        if not dev:
            raise ValueError("search=dev_split needs dev items; the task has none (give task.dev_size)")
        studies = self._studies(bench, dev, ranges, setting)
        if bench.steers:
            # A piece of work of its own: a restart has to do it again.
            bench.look_up([example for study in studies.values() for example in study.dev])
            setting.note("dev search: conditions")
        self._replay(studies, set(ranges), setting)
        while (done := min(len(study.means) for study in studies.values())) < self._budget:
            count = min(self.trials_per_round, self._budget - done)
            sets = {
                group: [{**fixed, **proposal} for proposal in study.proposer.ask(count)]
                for group, study in studies.items()
            }
            self._measure(bench, studies, sets, done, setting)
        return {group: study.best for group, study in studies.items()} if self.per_group else studies[""].best

    def _studies(
        self, bench: Workbench, dev: Sequence[Example], ranges: Mapping[str, Range], setting: Setting
    ) -> dict[str, _Study]:
        items: dict[str, list[Example]] = {}
        for example in dev:
            items.setdefault(_tuned_by(example) if self.per_group else "", []).append(example)

        if self.per_group:
            missing = set(map(_tuned_by, bench.task.examples("test"))) - set(items)
            if missing:
                raise ValueError(f"search.per_group needs dev items of every group; there are none of {min(missing)!r}")

        studies = {}
        for group, examples in items.items():
            seed = stable_seed(setting.seed, "dev_split", *([group] if self.per_group else []))
            proposer = Proposer(ranges, self.sampler, seed, self._budget, self.startup_trials, self._points)
            studies[group] = _Study(examples[: self.dev_examples], proposer)
        return studies

    def _replay(self, studies: Mapping[str, _Study], searched: set[str], setting: Setting) -> None:
        """Take over the rounds on disk that are whole, and drop what a kill left of another."""
        group_of = {example.id: group for group, study in studies.items() for example in study.dev}
        rounds: dict[int, dict[str, dict[int, list[Trial]]]] = {}
        for trial in setting.store.trials():
            of_group = rounds.setdefault(trial.round, {}).setdefault(group_of[trial.generation.example_id], {})
            of_group.setdefault(trial.number, []).append(trial)

        # A round that a kill left half done is dropped with all later ones, which were proposed from its values.
        for first in sorted(rounds):
            if not all(self._is_whole(rounds[first].get(group, {}), first, s) for group, s in studies.items()):
                torn = {(t.generation.example_id, t.round) for t in setting.store.trials() if t.round >= first}
                setting.store.drop_trials(torn)
                return

            for group, study in studies.items():
                sets = [rounds[first][group][number] for number in sorted(rounds[first][group])]
                values = [_mean([(t.objective, t.terms) for t in trials], setting.objective) for trials in sets]
                parameters = [trials[0].generation.parameters for trials in sets]
                study.proposer.replay([{name: p[name] for name in searched} for p in parameters], values)
                study.means += list(zip(parameters, values, strict=True))

    def _is_whole(self, sets: Mapping[int, Sequence[Trial]], first: int, study: _Study) -> bool:
        expected = min(self.trials_per_round, self._budget - first)
        return len(sets) == expected and all(len(trials) == len(study.dev) for trials in sets.values())

    def _measure(
        self,
        bench: Workbench,
        studies: Mapping[str, _Study],
        sets: Mapping[str, Sequence[Parameters]],
        first: int,
        setting: Setting,
    ) -> None:
        """Run the sets of a round on the dev items of their group, all in one pool, and tell what they came to."""
        bench.subject.forget_prompts()  # a restart begins with any round, and knows none
        count = len(next(iter(sets.values())))
        dev_items = [(group, example) for group, study in studies.items() for example in study.dev]
        runs = [(group, i, example) for i in range(count) for group, example in dev_items]
        requests = [Request(example, dict(sets[group][i]), first + i, bench.temperature) for group, i, example in runs]

        generations: list[Generation] = bench.run(requests, lambda: setting.advance(1))
        records = [bench.record(r.example, g) for r, g in zip(requests, generations, strict=True)]
        scored = setting.objective.score(records, setting.tools)
        trials = [
            Trial(request.trial, first, generation, objective, terms)
            for request, generation, (objective, terms) in zip(requests, generations, scored, strict=True)
        ]
        setting.keep(trials, f"dev search from trial {first}")

        results = {group: [[] for _ in range(count)] for group in studies}
        for (group, i, _), result in zip(runs, scored, strict=True):
            results[group][i].append(result)
        for group, study in studies.items():
            values = [_mean(own, setting.objective) for own in results[group]]
            study.proposer.tell(values)
            study.means += list(zip(sets[group], values, strict=True))

    def select(
        self, bench: Workbench, examples: Sequence[Example], prepared: Prepared, setting: Setting
    ) -> list[Selection]:
        """Run every test item once with the set that was chosen for it."""
        chosen = [prepared[_tuned_by(example)] if self._has_groups(prepared) else prepared for example in examples]
        return run_each(bench, examples, chosen, setting)

    def _has_groups(self, prepared: Prepared) -> bool:
        # Without anything to search, there is one set for all groups: an empty one for the un-steered model.
        return self.per_group and bool(prepared) and all(isinstance(value, dict) for value in prepared.values())


def _tuned_by(example: Example) -> str:
    return example.tuning or example.group


def _mean(results: Sequence[tuple[float, Mapping[str, float | None]]], objective: Objective) -> float:
    """Mean objective over the dev items that could be scored; the lowest there is if none could."""
    counted = [value for value, terms in results if objective.counts(terms)]
    return sum(counted) / len(counted) if counted else -sys.float_info.max
