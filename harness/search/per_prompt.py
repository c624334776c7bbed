"""Search for each prompt on its own, many prompts and trials in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.control import stable_seed
from harness.data import Access, Example, Parameters
from harness.scoring import Generation
from harness.search.proposals import Proposer, Sampler, check_sampler
from harness.search.search import Prepared, Search, Selection, Setting, Trial, searchable
from harness.steering import Layout, Method
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
        incumbent: whether the un-steered text can be the selected one, as the first of equal trials.
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
        """As many prompts as rows fit in one pool."""
        return self.rows_per_round

    def check(self, method: Method, layout: Layout) -> None:
        """Raise ValueError for a budget or sampler that cannot work."""
        check_budget(self.num_trials, self.trials_per_round, self.startup_trials, self.sampler)
        check_positive("rows_per_round", self.rows_per_round)

    def num_trials_of(self, num_examples: int) -> int:
        """Trials in all, incumbents included, for progress bars."""
        return num_examples * (self.num_trials + 1)

    def prepare(self, bench: Workbench, dev: Sequence[Example], setting: Setting) -> Parameters:
        """Nothing is decided before the prompts are seen."""
        return {}

    def select(
        self, bench: Workbench, examples: Sequence[Example], prepared: Prepared, setting: Setting
    ) -> list[Selection]:
        """Search every prompt, chunk by chunk."""
        size = max(1, self.rows_per_round // min(self.trials_per_round, self.num_trials))
        known = self._stored_trials(setting, {example.id for example in examples})
        found: list[Selection] = []
        for start in range(0, len(examples), size):
            chunk = _Chunk(self, bench, examples[start : start + size], setting, known)
            found += chunk.search()
            bench.forget_conditions()
        return found

    def _stored_trials(self, setting: Setting, ids: set[str]) -> dict[str, list[Trial]]:
        """Trials on disk by example, in order. What a kill left of a round is dropped from the file."""
        rounds: dict[tuple[str, int], list[Trial]] = {}
        for row in setting.store.trials:
            if row["example_id"] in ids and row["trial"] >= 0:
                rounds.setdefault((row["example_id"], row["generation"]), []).append(Trial.of(row))
        expected = {key: min(self.trials_per_round, self.num_trials - key[1] * self.trials_per_round) for key in rounds}
        torn = {key for key, trials in rounds.items() if len(trials) != expected[key]}
        if torn:
            setting.store.trials.keep(
                lambda row: row["trial"] < 0 or (row["example_id"], row["generation"]) not in torn
            )
        found: dict[str, list[Trial]] = {}
        for row in setting.store.trials:
            if row["example_id"] in ids:
                found.setdefault(row["example_id"], []).append(Trial.of(row))
        return {name: sorted(trials, key=lambda trial: trial.number) for name, trials in found.items()}


def check_budget(num_trials: int, trials_per_round: int, startup_trials: int, sampler: str) -> None:
    """Raise ValueError unless the counts are positive (no random trial first is allowed) and the sampler is known."""
    check_positive("num_trials", num_trials)
    check_positive("trials_per_round", trials_per_round)
    if startup_trials < 0:
        raise ValueError(f"search.startup_trials must be at least 0, got {startup_trials}")
    check_sampler(sampler)


def check_positive(name: str, value: int) -> None:
    """Raise ValueError for a count below 1."""
    if value < 1:
        raise ValueError(f"search.{name} must be at least 1, got {value}")


class _Chunk:
    """The prompts that search together."""

    def __init__(
        self,
        search: PerPrompt,
        bench: Workbench,
        examples: Sequence[Example],
        setting: Setting,
        known: dict[str, list[Trial]],
    ) -> None:
        self.search_, self.bench, self.examples, self.setting = search, bench, examples, setting
        self.trials = {example.id: list(known.get(example.id, [])) for example in examples}
        setting.advance(sum(map(len, self.trials.values())))
        self.ranges, self.fixed = searchable(bench)
        self.proposers = {example.id: self._proposer(example) for example in examples}

    def _proposer(self, example: Example) -> Proposer:
        seed = stable_seed(self.setting.seed, "search", example.id)
        search = self.search_
        proposer = Proposer(self.ranges, search.sampler, seed, search.num_trials, search.startup_trials)
        rounds: dict[int, list[Trial]] = {}
        for trial in self.trials[example.id]:
            if trial.number >= 0:
                rounds.setdefault(trial.round, []).append(trial)
        for number in sorted(rounds):
            proposals = [self._searched(trial.generation.parameters) for trial in rounds[number]]
            proposer.replay(proposals, [trial.objective for trial in rounds[number]])
        return proposer

    def _searched(self, parameters: Parameters) -> Parameters:
        return {name: parameters[name] for name in self.ranges}

    def search(self) -> list[Selection]:
        """All rounds that are still missing, then the best trial of each prompt."""
        self._run_incumbents()
        while self._run_round():
            pass
        return [self._best(example) for example in self.examples]

    def _run_incumbents(self) -> None:
        missing = [e for e in self.examples if not any(t.number == -1 for t in self.trials[e.id])]
        requests = [Request(example, {}, -1) for example in missing]
        self._finish(requests, [0] * len(requests), self._run(requests))

    def _run(self, requests: Sequence[Request]) -> list[Generation]:
        return self.bench.run(requests, lambda: self.setting.advance(1))

    def _run_round(self) -> bool:
        requests, rounds, asked = [], [], []
        for example in self.examples:
            done = [trial for trial in self.trials[example.id] if trial.number >= 0]
            count = min(self.search_.trials_per_round, self.search_.num_trials - len(done))
            if count <= 0:
                continue
            asked.append((example.id, count))
            for offset, proposal in enumerate(self.proposers[example.id].ask(count)):
                parameters = {**self.fixed, **proposal}
                request = Request(example, parameters, len(done) + offset, self.bench.control.temperature)
                requests.append(request)
                rounds.append(1 + max((trial.round for trial in done), default=-1))
        objectives = self._finish(requests, rounds, self._run(requests))
        for name, count in asked:
            self.proposers[name].tell([objectives.pop(0) for _ in range(count)])
        return bool(requests)

    def _finish(
        self, requests: Sequence[Request], rounds: Sequence[int], generations: Sequence[Generation]
    ) -> list[float]:
        if not requests:
            return []
        records = [self.bench.record(r.example, g) for r, g in zip(requests, generations, strict=True)]
        scored = self.setting.objective.score(records, self.setting.tools)
        trials = [
            Trial(request.trial, number, generation, objective, terms)
            for request, number, generation, (objective, terms) in zip(
                requests, rounds, generations, scored, strict=True
            )
        ]
        self.setting.store.trials.append(trial.row() for trial in trials)
        for trial in trials:
            self.trials[trial.generation.example_id].append(trial)
        return [trial.objective for trial in trials]

    def _best(self, example: Example) -> Selection:
        first = -1 if self.search_.incumbent else 0
        known = (trial for trial in self.trials[example.id] if trial.number >= first)
        trials = sorted(known, key=lambda trial: trial.number)
        best = max(trials, key=lambda trial: trial.objective)  # the first of equals
        return Selection(best.generation, best.number, best.objective)
