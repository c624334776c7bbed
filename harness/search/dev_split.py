"""One parameter set for all test items, chosen on the dev split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.control import stable_seed
from harness.data import Example, Parameters
from harness.records.rows import Trial
from harness.scoring import Generation
from harness.search.per_prompt import check_budget
from harness.search.proposals import Proposer, Sampler
from harness.search.search import Search, Selection, Setting, check_positive, run_all, searchable
from harness.steering import Layout, Method
from harness.workbench import Request, Workbench


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
    """

    needs_objective: ClassVar[bool] = True
    uses_dev: ClassVar[bool] = True
    num_trials: int
    trials_per_round: int
    sampler: Sampler
    startup_trials: int
    dev_examples: int | None = None

    def check(self, method: Method, layout: Layout) -> None:
        """Raise ValueError for a budget or sampler that cannot work."""
        check_budget(self.num_trials, self.trials_per_round, self.startup_trials)
        if self.dev_examples is not None:
            check_positive("dev_examples", self.dev_examples)

    def num_dev_trials_of(self, num_dev: int) -> int:
        """Every parameter set on every dev item that is used."""
        return self.num_trials * (num_dev if self.dev_examples is None else min(num_dev, self.dev_examples))

    def prepare(self, bench: Workbench, dev: Sequence[Example], setting: Setting) -> Parameters:
        """Search the dev split; trials on disk are replayed.

        Raises:
            ValueError: the task has no dev items.
        """
        ranges, fixed = searchable(bench)
        if not ranges:
            return fixed
        if not dev:
            raise ValueError("search=dev_split needs dev items; the task has none (give task.dev_size)")
        dev = dev[: self.dev_examples]
        if bench.steers:
            bench.look_up(dev)
            setting.note("dev search: conditions")
        seed = stable_seed(setting.seed, "dev_split")
        proposer = Proposer(ranges, self.sampler, seed, self.num_trials, self.startup_trials)
        means = self._replay(proposer, setting, set(ranges), len(dev))
        while len(means) < self.num_trials:
            count = min(self.trials_per_round, self.num_trials - len(means))
            sets = [{**fixed, **proposal} for proposal in proposer.ask(count)]
            values = self._measure(bench, dev, sets, len(means), setting)
            proposer.tell(values)
            means += list(zip(sets, values, strict=True))
        return dict(max(means, key=lambda pair: pair[1])[0])

    def _replay(
        self, proposer: Proposer, setting: Setting, searched: set[str], num_dev: int
    ) -> list[tuple[Parameters, float]]:
        """Bring the study to where the trials on disk left it; what a kill left of a round is removed."""
        rounds: dict[int, dict[int, list[Trial]]] = {}
        for trial in setting.store.trials():
            rounds.setdefault(trial.round, {}).setdefault(trial.number, []).append(trial)

        means: list[tuple[Parameters, float]] = []
        for number in sorted(rounds):
            sets = [rounds[number][trial] for trial in sorted(rounds[number])]
            due = min(self.trials_per_round, self.num_trials - number)
            if len(sets) != due or any(len(trials) != num_dev for trials in sets):
                torn = [trial for later in range(number, max(rounds) + 1) for trial in _flat(rounds.get(later, {}))]
                setting.store.drop_trials({(trial.generation.example_id, trial.round) for trial in torn})
                return means
            values = [sum(trial.objective for trial in trials) / num_dev for trials in sets]
            parameters = [trials[0].generation.parameters for trials in sets]
            proposer.replay([{name: p[name] for name in searched} for p in parameters], values)
            means += list(zip(parameters, values, strict=True))
        return means

    def _measure(
        self, bench: Workbench, dev: Sequence[Example], sets: Sequence[Parameters], first: int, setting: Setting
    ) -> list[float]:
        requests = [Request(e, dict(p), first + i) for i, p in enumerate(sets) for e in dev]
        generations: list[Generation] = bench.run(requests, lambda: setting.advance(1))
        records = [bench.record(r.example, g) for r, g in zip(requests, generations, strict=True)]
        scored = setting.objective.score(records, setting.tools)
        trials = [
            Trial(request.trial, first, generation, objective, terms)
            for request, generation, (objective, terms) in zip(requests, generations, scored, strict=True)
        ]
        setting.keep(trials, f"dev search from trial {first}")
        size = len(dev)
        return [sum(t.objective for t in trials[i * size : (i + 1) * size]) / size for i in range(len(sets))]

    def select(
        self, bench: Workbench, examples: Sequence[Example], prepared: Parameters, setting: Setting
    ) -> list[Selection]:
        """Run every test item once with the chosen set."""
        return run_all(bench, examples, prepared, setting)


def _flat(by_number: dict[int, list[Trial]]) -> list[Trial]:
    return [trial for trials in by_number.values() for trial in trials]
