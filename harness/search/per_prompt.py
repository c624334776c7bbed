"""Search for each prompt on its own, many prompts and trials in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.control import stable_seed
from harness.data import Access, Example
from harness.records.rows import UNSTEERED, Trial
from harness.scoring import Generation
from harness.search.proposals import Proposer, Sampler
from harness.search.search import Prepared, Search, Selection, Setting, check_positive, searchable
from harness.steering import Layout, Method
from harness.workbench import Request, Workbench


@dataclass(frozen=True, kw_only=True)
class PerPrompt(Search):
    """The best of N trials for each test item, by an objective that knows its answer.

    Trials come in rounds. A prompt proposes its next ones as soon as those of its round are scored, whatever the other
    prompts of the chunk are doing, so that rows of many prompts keep the batch full. The un-steered text is the
    incumbent outside the study; of equal trials the first wins.

    Args:
        num_trials: trials per prompt, the same budget for every method.
        trials_per_round: proposals between two updates of the sampler.
        sampler: tpe, random, cmaes, gp, qmc (Optuna's) or grid (all strengths at the same share of their range).
        startup_trials: random trials before the sampler learns.
        incumbent: whether the un-steered text can be the selected one, as the first of equal trials; without, it is not
            generated.
    """

    access: ClassVar[frozenset[Access]] = frozenset({Access.GOLD})
    needs_objective: ClassVar[bool] = True
    num_trials: int
    trials_per_round: int
    sampler: Sampler
    startup_trials: int
    incumbent: bool = True

    def chunk_size(self, rows_at_once: int) -> int:
        """Prompts whose rounds have twice the rows that run at once: while some are scored, others fill the batch."""
        return max(1, 2 * rows_at_once // self.trials_in(0))

    def check(self, method: Method, layout: Layout) -> None:
        """Raise ValueError for a budget that cannot work."""
        if method.couples_rows:
            raise ValueError(
                "search=per_prompt gives every sample parameters of its own; this method steers samples of one prompt "
                "together: choose search=dev_split or search=fixed"
            )
        check_budget(self.num_trials, self.trials_per_round, self.startup_trials)

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
        if not chunk.is_done:
            chunk.run()
        return [chunk.best(example) for example in examples]


def check_budget(num_trials: int, trials_per_round: int, startup_trials: int) -> None:
    """Raise ValueError unless the counts are positive; no random trial first is allowed."""
    check_positive("num_trials", num_trials)
    check_positive("trials_per_round", trials_per_round)
    if startup_trials < 0:
        raise ValueError(f"search.startup_trials must be at least 0, got {startup_trials}")


class _Chunk:
    """Prompts that search together, each with a study of its own.

    Their rows share batches, and only the same batches give the same numbers to the last digit. A chunk that a kill
    interrupted is therefore searched anew.
    """

    def __init__(self, search: PerPrompt, bench: Workbench, examples: Sequence[Example], setting: Setting) -> None:
        self.plan, self.bench, self.examples, self.setting = search, bench, examples, setting
        self.name = f"search from {examples[0].id}"
        self.trials = {example.id: setting.store.unfinished_trials.pop(example.id, []) for example in examples}

    @property
    def is_done(self) -> bool:
        """Whether all trials of all prompts stand on the disk."""
        return all(len(trials) == self.plan.incumbent + self.plan.num_trials for trials in self.trials.values())

    def run(self) -> None:
        """Run the un-steered texts, if they can be selected, then all rounds of all prompts."""
        # What a kill left of this chunk is thrown away: it would share batches with other rows now.
        torn = {(name, trial.round) for name, trials in self.trials.items() for trial in trials}
        self.setting.store.drop_trials(torn)
        self.trials = {example.id: [] for example in self.examples}
        self.running: dict[str, list[tuple[Request, Generation]]] = {example.id: [] for example in self.examples}
        self.written = 0

        self.ranges, self.fixed = searchable(self.bench)
        self.proposers = {example.id: self._proposer(example) for example in self.examples}
        if self.bench.steers:
            # What is looked up for a prompt is a piece of work of its own: a restart has to do it again.
            self.bench.look_up(self.examples)
            self.setting.note(f"{self.name}: conditions")

        if self.plan.incumbent:
            unsteered = [Request(example, {}, UNSTEERED, self.bench.task.temperature) for example in self.examples]
            generations = self.bench.run(unsteered, self._advance)
            first = self._after(list(zip(unsteered, generations, strict=True)))
        else:
            first = [request for example in self.examples for request in self._requests(example)]
        self.bench.run_on(first, self._after, self._advance)

    def _advance(self) -> None:
        self.setting.advance(1)

    def _proposer(self, example: Example) -> Proposer:
        seed = stable_seed(self.setting.seed, "search", example.id)
        return Proposer(self.ranges, self.plan.sampler, seed, self.plan.num_trials, self.plan.startup_trials)

    def _round_of(self, name: str) -> int:
        """The round that a prompt is in; the un-steered text, if it is made, is a round before all others."""
        return self.trials[name][-1].round + 1 if self.trials[name] else self.plan.first_round

    def _after(self, finished: Sequence[tuple[Request, Generation]]) -> list[Request]:
        """What to run next: the following rounds of the prompts whose round is complete with these rows."""
        for request, generation in finished:
            self.running[request.example.id].append((request, generation))

        # Prompts go at their own pace: each proposes its next round as soon as all rows of its last are there.
        complete = [
            example
            for example in self.examples
            if (rows := self.running[example.id]) and len(rows) == self.plan.trials_in(self._round_of(example.id))
        ]
        self._score(complete)
        return [request for example in complete for request in self._requests(example)]

    def _score(self, examples: Sequence[Example]) -> None:
        """Score the rounds of these prompts together, and write them before anybody learns from them."""
        if not examples:
            return
        rows = [row for example in examples for row in sorted(self.running[example.id], key=lambda row: row[0].trial)]
        records = [self.bench.record(request.example, generation) for request, generation in rows]
        scored = self.setting.objective.score(records, self.setting.tools)
        trials = [
            Trial(request.trial, self._round_of(request.example.id), generation, objective, terms)
            for (request, generation), (objective, terms) in zip(rows, scored, strict=True)
        ]
        self.written += 1
        self.setting.keep(trials, f"{self.name}: part {self.written}")

        for example in examples:
            own = [trial for trial in trials if trial.generation.example_id == example.id]
            if own[0].number != UNSTEERED:
                self.proposers[example.id].tell([trial.objective for trial in own])
            self.trials[example.id] += own
            self.running[example.id].clear()

    def _requests(self, example: Example) -> list[Request]:
        """The rows of a prompt's next round; none after its last."""
        count = self.plan.trials_in(self._round_of(example.id))
        if not count:
            return []
        first = self._round_of(example.id) * self.plan.trials_per_round
        temperature = self.bench.temperature
        return [
            Request(example, {**self.fixed, **proposal}, first + offset, temperature)
            for offset, proposal in enumerate(self.proposers[example.id].ask(count))
        ]

    def best(self, example: Example) -> Selection:
        """The best trial of a prompt, the first of equals."""
        chosen = max(self.trials[example.id], key=lambda trial: trial.objective)
        return Selection(chosen.generation, chosen.number, chosen.objective)
