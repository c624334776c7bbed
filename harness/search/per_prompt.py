"""Search for each prompt on its own, many prompts and trials in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.control import stable_seed
from harness.data import Access, Example
from harness.records.rows import UNSTEERED, Trial
from harness.search.proposals import Proposer, Sampler
from harness.search.search import Prepared, Search, Selection, Setting, check_positive, searchable
from harness.steering import Layout, Method, Range
from harness.workbench import Request, Workbench


@dataclass(frozen=True, kw_only=True)
class PerPrompt(Search):
    """The best of N trials for each test item, by an objective that knows its answer.

    Trials come in rounds: all prompts of a chunk propose, their rows run in one pool, and every round is written before
    the next one is asked for. A killed search replays what is on disk and goes on with the same proposals. The
    un-steered text is the incumbent outside the study; of equal trials the first wins.

    Args:
        num_trials: trials per prompt, the same budget for every method.
        trials_per_round: proposals between two updates of the sampler.
        sampler: tpe, random, cmaes, gp, qmc (Optuna's) or grid (all strengths at the same share of their range).
        startup_trials: random trials before the sampler learns.
        rows_per_round: rows in one pool; decides how many prompts make a chunk.
        incumbent: whether the un-steered text can be the selected one, as the first of equal trials; without, it is not
            generated.
    """

    access: ClassVar[frozenset[Access]] = frozenset({Access.GOLD})
    needs_objective: ClassVar[bool] = True
    num_trials: int
    trials_per_round: int
    sampler: Sampler
    startup_trials: int
    rows_per_round: int = 256
    incumbent: bool = True

    @property
    def chunk_size(self) -> int:
        """As many prompts as their rows of one round fit in one pool."""
        return max(1, self.rows_per_round // min(self.trials_per_round, self.num_trials))

    def check(self, method: Method, layout: Layout) -> None:
        """Raise ValueError for a budget that cannot work."""
        check_budget(self.num_trials, self.trials_per_round, self.startup_trials)
        check_positive("rows_per_round", self.rows_per_round)

    def num_trials_of(self, num_examples: int) -> int:
        """Trials in all, incumbents included, for progress bars."""
        return num_examples * (self.num_trials + self.incumbent)

    @property
    def first_round(self) -> int:
        """-1, the round of the un-steered texts, or 0 where nobody needs them."""
        return -1 if self.incumbent else 0

    def trials_in(self, round_number: int) -> int:
        """Trials of one prompt in a round; the round before the first holds the un-steered text."""
        if round_number < 0:
            return 1
        left = self.num_trials - round_number * self.trials_per_round
        return max(0, min(self.trials_per_round, left))

    def select(
        self, bench: Workbench, examples: Sequence[Example], prepared: Prepared, setting: Setting
    ) -> list[Selection]:
        """Search the prompts of one chunk."""
        chunk = _Chunk(self, bench, examples, setting)
        round_number = chunk.replay()
        while self.trials_in(round_number):
            chunk.run(round_number)
            round_number += 1
        return [chunk.best(example) for example in examples]


def check_budget(num_trials: int, trials_per_round: int, startup_trials: int) -> None:
    """Raise ValueError unless the counts are positive; no random trial first is allowed."""
    check_positive("num_trials", num_trials)
    check_positive("trials_per_round", trials_per_round)
    if startup_trials < 0:
        raise ValueError(f"search.startup_trials must be at least 0, got {startup_trials}")


class _Chunk:
    """Prompts that search together, each with a study of its own."""

    def __init__(self, search: PerPrompt, bench: Workbench, examples: Sequence[Example], setting: Setting) -> None:
        self.plan, self.bench, self.examples, self.setting = search, bench, examples, setting
        self.name = f"search from {examples[0].id}"
        self.trials: dict[str, list[Trial]] = {example.id: [] for example in examples}
        ranges, self.fixed = searchable(bench)
        self.proposers = {example.id: self._proposer(example, ranges) for example in examples}
        if bench.steers:
            # What is looked up for a prompt is a piece of work of its own: a restart has to do it again.
            bench.look_up(examples)
            setting.note(f"{self.name}: conditions")

    def _proposer(self, example: Example, ranges: dict[str, Range]) -> Proposer:
        seed = stable_seed(self.setting.seed, "search", example.id)
        return Proposer(ranges, self.plan.sampler, seed, self.plan.num_trials, self.plan.startup_trials)

    def replay(self) -> int:
        """Bring every study to where the trials on disk left it; the number of the round to run next.

        A round counts only if all prompts of the chunk have all of its trials: its rows shared batches, and only the
        same batches give the same numbers again. What a kill left of a round is removed from the disk.
        """
        stored = {example.id: self.setting.store.unfinished_trials.pop(example.id, []) for example in self.examples}
        round_number = self.plan.first_round
        while self.plan.trials_in(round_number):
            of_round = {
                name: [trial for trial in trials if trial.round == round_number] for name, trials in stored.items()
            }
            if any(len(trials) != self.plan.trials_in(round_number) for trials in of_round.values()):
                break
            for name, trials in of_round.items():
                self._learn(name, sorted(trials, key=lambda trial: trial.number), replayed=True)
            round_number += 1

        torn = {(name, t.round) for name, trials in stored.items() for t in trials if t.round >= round_number}
        self.setting.store.drop_trials(torn)
        self.setting.advance(sum(map(len, self.trials.values())))
        return round_number

    def _learn(self, name: str, trials: Sequence[Trial], replayed: bool) -> None:
        """Tell one prompt's study how the trials of a round came out."""
        self.trials[name] += trials
        if trials[0].number == UNSTEERED:
            return
        objectives = [trial.objective for trial in trials]
        if replayed:
            searched = [
                {key: value for key, value in trial.generation.parameters.items() if key not in self.fixed}
                for trial in trials
            ]
            self.proposers[name].replay(searched, objectives)
        else:
            self.proposers[name].tell(objectives)

    def run(self, round_number: int) -> None:
        """Run one round of all prompts in one pool, and write it before anybody learns from it."""
        requests = [request for example in self.examples for request in self._requests(example, round_number)]
        generations = self.bench.run(requests, lambda: self.setting.advance(1))
        records = [self.bench.record(r.example, g) for r, g in zip(requests, generations, strict=True)]
        scored = self.setting.objective.score(records, self.setting.tools)
        trials = [
            Trial(request.trial, round_number, generation, objective, terms)
            for request, generation, (objective, terms) in zip(requests, generations, scored, strict=True)
        ]
        self.setting.keep(trials, f"{self.name}: round {round_number}")
        for example in self.examples:
            own = [trial for trial in trials if trial.generation.example_id == example.id]
            self._learn(example.id, own, replayed=False)

    def _requests(self, example: Example, round_number: int) -> list[Request]:
        if round_number < 0:
            return [Request(example, {}, UNSTEERED)]
        first = round_number * self.plan.trials_per_round
        proposals = self.proposers[example.id].ask(self.plan.trials_in(round_number))
        temperature = self.bench.control.temperature
        return [
            Request(example, {**self.fixed, **proposal}, first + offset, temperature)
            for offset, proposal in enumerate(proposals)
        ]

    def best(self, example: Example) -> Selection:
        """The best trial of a prompt, the first of equals."""
        chosen = max(self.trials[example.id], key=lambda trial: trial.objective)
        return Selection(chosen.generation, chosen.number, chosen.objective)
