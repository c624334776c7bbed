"""Writes run directories of the real format, with seeded texts and scores, for the tests of the report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.data import Example
from harness.records.keys import key_of
from harness.records.lines import mark_of
from harness.records.rows import Selected, Trial, score_row
from harness.records.run import (
    SCORES_FILE,
    Cost,
    EvaluatorNote,
    Labels,
    MetricNote,
    Provenance,
    Receipt,
    RunRecord,
    SearchNote,
    SiteChange,
)  # fmt: skip
from harness.records.store import GenerationStore, Work
from harness.scoring import Generation, Metric, Record, Score
from harness.statistics import estimate

TOPICS = ("Geography", "Science", "Art", "History")
ANSWER_TYPES = ("Person", "Place", "Date", "Number", "Other")
METRICS = {
    "token_overlap": [Metric("overlap", True, 0.0, 1.0)],
    "simpleqa_rubric": [
        Metric("correct", True, 0.0, 1.0, "proportion"),
        Metric("incorrect", False, 0.0, 1.0, "proportion"),
    ],
    "perplexity": [
        Metric("perplexity", False, 1.0, float("inf"), "geometric", beside="broken"),
        Metric("broken", False, 0.0, 1.0, "proportion"),
        Metric("repetition", False, 0.0, 1.0),
    ],
}


@dataclass(frozen=True)
class Plan:
    """What a written run says it was, see `write_run`."""

    method: str
    search: str
    control: str
    seed: int
    count: int
    strength: float | None
    trials: int
    oracle: bool

    @property
    def name(self) -> str:
        strength = [] if self.strength is None else [f"{self.strength:g}"]
        return "-".join([self.method, self.search, self.control, str(self.seed), *strength])

    @property
    def mark(self) -> int:
        """A number of the run's own: it seeds what is drawn, and names the folder of generations."""
        return int(hashlib.sha256(self.name.encode()).hexdigest()[:8], 16)

    @property
    def steers(self) -> bool:
        return self.method not in ("baseline", "prompting") and self.control not in ("best_of_n", "gold_in_prompt")

    @property
    def config(self) -> dict[str, Any]:
        strength = {} if self.strength is None else {"strength": self.strength}
        return {
            "method": {"_target_": f"methods.{self.method}", **strength},
            "search": {"kind": self.search, "num_trials": self.trials},
            "control": {"kind": self.control},
            "task": {"name": "facts", "primary": "correct"},
            "model": {"name": "tiny"},
        }

    @property
    def labels(self) -> Labels:
        return Labels(
            method=self.method,
            search=self.search,
            control=self.control,
            task="facts",
            model="tiny",
            seed=str(self.seed),
            protocol="standard",
        )


def questions(count: int) -> list[Example]:
    """Examples with a two-word gold answer, a topic and an answer type."""
    return [
        Example(
            id=f"q{index:03d}",
            question=f"Who described the {index}th comet over Alder Bay?",
            answer=f"Mira Quill{index}",
            aliases=(f"M. Quill{index}",),
            metadata={
                "topic": TOPICS[index % len(TOPICS)],
                "answer_type": ANSWER_TYPES[index % len(ANSWER_TYPES)],
            },
        )
        for index in range(count)
    ]


def write_run(
    directory: Path,
    method: str,
    *,
    search: str = "fixed",
    control: str = "none",
    seed: int = 0,
    count: int = 40,
    skill: float = 0.3,
    strength: float | None = None,
    trials: int = 0,
    oracle: bool = False,
    text: Callable[[int, str], str] | None = None,
    **changes: Any,
) -> Path:
    """Write one finished run and return its directory.

    Args:
        directory: directory of all runs.
        method: label of the method.
        search: label of the search.
        control: label of the control.
        seed: seed of the run; examples are the same for all seeds.
        count: number of examples.
        skill: chance that an answer is right.
        strength: a fixed strength, part of the config.
        trials: trials per example.
        oracle: whether gold answers were seen.
        text: makes the output of an example from its index and the default text.
        **changes: replaces parts of run.json.
    """
    plan = Plan(method, search, control, seed, count, strength, trials, oracle)
    rng = np.random.default_rng(plan.mark)
    examples = questions(count)
    right = _right(count, skill, rng)
    outputs = [_output(example, bool(hit), rng) for example, hit in zip(examples, right, strict=True)]
    if text is not None:
        outputs = [text(index, output) for index, output in enumerate(outputs)]
    parameters = [_parameters(method, rng, strength) if trials or strength else {} for _ in examples]
    scores = _scores(examples, outputs, right, rng)

    tried = _trials(examples, trials, rng, skill) if trials else []
    store = _stored(directory, plan, _selected(examples, outputs, parameters), tried)
    run = directory / plan.name
    _write_lines(run / SCORES_FILE, [score_row(score) for score in scores])
    _record(run, store, scores, plan).write(run)
    if changes:
        rewrite(run, **changes)
    return run


def _stored(directory: Path, plan: Plan, selected: Sequence[Selected], trials: Sequence[Trial]) -> GenerationStore:
    store = GenerationStore(directory / "generations" / f"{plan.mark:08x}")
    store.begin({"name": plan.name})
    store.add_selected(selected)
    if trials:
        store.add_trials(trials, Work("search", 120_000, 73.5))
    store.seal()
    return store


def _right(count: int, skill: float, rng: np.random.Generator) -> np.ndarray:
    """Which answers are right. Some questions are harder than others for every run, so that pairs correlate."""
    difficulty = np.random.default_rng(7).normal(size=count)
    luck = 0.8 * difficulty + 0.6 * rng.normal(size=count)
    return luck < np.quantile(np.random.default_rng(8).normal(size=20_000), skill)


def _output(example: Example, right: bool, rng: np.random.Generator) -> str:
    if right:
        return f"It was {example.answer}, who saw it from the northern shore."
    if rng.random() < 0.15:
        return "the the comet the the comet " * 8
    return f"It was Mira {rng.choice(['Sand', 'Holt', 'Fenn'])}, who wrote about the tide."


def _parameters(method: str, rng: np.random.Generator, strength: float | None) -> dict[str, float]:
    if strength is not None:
        return {"strength": strength}
    names = ("early", "middle", "late") if method == "segmented" else ("strength",)
    return {name: float(10 ** rng.uniform(-2.5, -0.7)) for name in names}


def _scores(
    examples: Sequence[Example], outputs: Sequence[str], right: np.ndarray, rng: np.random.Generator
) -> list[Score]:
    scores = []
    for example, output, hit in zip(examples, outputs, right, strict=True):
        values = {
            "overlap": 1.0 if hit else 0.5 if "Mira" in output else 0.0,
            "correct": float(hit),
            "incorrect": float(not hit),
            "perplexity": float(np.exp(rng.normal(3.2, 0.5))),
            "broken": float("the the" in output),
            "repetition": 0.8 if "the the" in output else 0.02,
        }
        scores += [Score(example.id, metric, value) for metric, value in values.items()]
    return scores


def _selected(
    examples: Sequence[Example], outputs: Sequence[str], parameters: Sequence[Mapping[str, float]]
) -> list[Selected]:
    return [
        Selected(
            Record(
                example,
                Generation(example.id, dict(chosen), output, (1, 2, 3), "stop"),
                f"Q: {example.question}\nA:",
            ),
            trial=0,
        )
        for example, output, chosen in zip(examples, outputs, parameters, strict=True)
    ]


def _trials(examples: Sequence[Example], count: int, rng: np.random.Generator, skill: float) -> list[Trial]:
    trials = []
    for example in examples:
        for number in range(count):
            parameters = {"strength": float(10 ** rng.uniform(-2.5, -0.7))}
            generation = Generation(example.id, parameters, "a trial", (), "stop")
            trials.append(Trial(number, number // 4, generation, float(rng.normal(skill, 0.2)), {}))
    return trials


def _record(run: Path, store: GenerationStore, scores: Sequence[Score], plan: Plan) -> RunRecord:
    searched = SearchNote(access=("gold",) if plan.oracle else (), optimises=("overlap",)) if plan.trials else None
    return RunRecord(
        key=store.folder.name,
        entry=key_of(plan.config),
        name=run.name,
        created="2025-01-01T00:00:00Z",
        status="done",
        config={**plan.config, "seed": plan.seed},
        labels=plan.labels,
        access=("gold",) if plan.oracle else (),
        oracle=plan.oracle,
        searched=searched,
        optimised_metrics=("overlap",) if plan.oracle and plan.trials else (),
        evaluators={name: _evaluator(name) for name in METRICS},
        judge="match@1",
        generations=f"../generations/{store.folder.name}",
        files={**store.files, SCORES_FILE: mark_of(run / SCORES_FILE)},
        receipt=_receipt() if plan.steers else None,
        estimates=_estimates(scores),
        derived={"f1": 0.31},
        num_examples=plan.count,
        cost=Cost(
            trials=plan.trials * plan.count, forward_tokens=120_000, seconds=73.5, peak_memory_bytes=1_200_000_000
        ),
        provenance=_provenance(plan),
    )


def _provenance(plan: Plan) -> Provenance:
    return Provenance(
        commit="0123abc",
        versions={"torch": "2.13", "transformers": "5.23"},
        device="cpu",
        dtype="float32",
        model_identity="tiny@abc",
        task_fingerprint=f"facts-{plan.count}",
        command=f"python -m harness method={plan.method} search={plan.search} control={plan.control}",
    )


def _evaluator(name: str) -> EvaluatorNote:
    metrics = tuple(MetricNote.of(metric) for metric in METRICS[name])
    return EvaluatorNote(version=1, metrics=metrics, judged=name == "simpleqa_rubric")


def _estimates(scores: Sequence[Score]) -> dict[str, Any]:
    metrics = [metric for metrics in METRICS.values() for metric in metrics]
    return {
        metric.name: estimate(metric, [score.value for score in scores if score.metric == metric.name])
        for metric in metrics
    }


def _receipt() -> Receipt:
    sites = {
        f"{layer}.block": SiteChange(relative_change=0.04 + 0.01 * layer, tokens_prompt=12, tokens_completion=20)
        for layer in range(4)
    }
    return Receipt(rows=8, sites_hit=4, sites_missed=(), sites=sites, kl_mean=0.21, kl_max=0.4)


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rewrite(run: Path, **changes: Any) -> None:
    """Replace parts of a written run.json."""
    file = run / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def reseal(run: Path) -> None:
    """Note the marks of a run's files anew, as if they had been written as they are now."""
    content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    folder = run / content["generations"]
    for name in content["files"]:
        mark = mark_of((run if name == SCORES_FILE else folder) / name)
        content["files"][name] = {"lines": mark.lines, "sha256": mark.sha256}
    (run / "run.json").write_text(json.dumps(content), encoding="utf-8")


def write_sweep(directory: Path, count: int = 40, text: Callable[[int, str], str] | None = None) -> list[Path]:
    """A sweep with two deployable methods, two oracles, their controls and a strength curve."""
    options = {"search": "per_prompt", "trials": 16, "oracle": True, "count": count}
    runs = [write_run(directory, "baseline", count=count, skill=0.15), write_run(directory, "prompting", count=count)]
    runs += [
        write_run(directory, "caa", strength=strength, count=count, skill=skill)
        for strength, skill in ((0.5, 0.16), (1.0, 0.2), (2.0, 0.3), (4.0, 0.1))
    ]

    for method, skill in (("full_layer", 0.45), ("segmented", 0.6)):
        runs.append(write_run(directory, method, skill=skill, text=text, **options))
        runs += [
            write_run(directory, method, control=control, skill=chance, **options)
            for control, chance in (("shuffled", 0.2), ("random", 0.18), ("best_of_n", 0.4), ("gold_in_prompt", 0.9))
        ]
    return runs
