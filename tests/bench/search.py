"""A whole search per prompt through the harness's own code, and what its time goes to."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import ours
from bench.jobs import Jobs, encoded
from bench.report import grid
from bench.timing import Stopwatch
from harness.data import Example
from harness.job import Job
from harness.progress import phase
from harness.records.meter import Meter
from harness.records.store import GenerationStore
from harness.scoring import Scorer, Tools
from harness.search.search import Setting
from harness.steering import Intervention
from harness.subject.batch import Decoded
from harness.subject.decode import Decoder
from harness.subject.hooks import Observer
from harness.subject.local import LocalSubject
from harness.subject.network import Network
from harness.subject.sampling import Sampling
from harness.subject.sizes import CPU_ROWS as AT_ONCE
from harness.subject.sizes import EngineConfig
from harness.subject.tally import Tally
from harness.workbench import Workbench

PREFILL, DECODE, ENGINE = "engine: prompts", "engine: decoding", "engine: between the passes"
REFERENCES, SCORER, TEXT = "activations read for the method", "scorer's passes", "templates and tokenizer"
REST = "the rest: Optuna, JSON lines, other metrics"


@dataclass(eq=False)
class Ledger:
    """Seconds by part. While a part is open inside another, time counts for the inner one alone."""

    watch: Stopwatch
    seconds: dict[str, float] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Book the time inside the block."""
        self._book()
        self._open.append(name)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def _book(self) -> None:
        now = self.watch.now()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    def split(self, name: str, parts: Mapping[str, float]) -> None:
        """Take seconds that were measured otherwise out of a part."""
        self.seconds[name] -= sum(parts.values())
        self.seconds |= parts


class TimedDecoder(Decoder):
    """The engine, with its work booked; what a search decides between its passes is not the engine's."""

    def __init__(self, network: Network, sampling: Sampling, tally: Tally, ledger: Ledger) -> None:
        super().__init__(network, [], Intervention(), sampling, [], tally)
        self.ledger = ledger

    def run(
        self,
        engine: EngineConfig,
        on_finish: Callable[[int], None] | None = None,
        observer: Observer | None = None,
        refill: Callable[[], None] | None = None,
    ) -> list[Decoded]:
        """As the engine's."""

        def booked() -> None:
            with self.ledger.part(REST):
                (refill or (lambda: None))()

        with self.ledger.part(ENGINE):
            return super().run(engine, on_finish, observer, booked)


@dataclass(frozen=True, eq=False)
class TimedSubject(LocalSubject):
    """The subject, with its work booked by part."""

    ledger: Ledger = field(kw_only=True)

    def render(self, prompt: str, instruction: str = "", raw: bool = False) -> str:
        """As the subject's."""
        with self.ledger.part(TEXT):
            return super().render(prompt, instruction, raw)

    def encode(self, text: str) -> tuple[int, ...]:
        """As the subject's."""
        with self.ledger.part(TEXT):
            return super().encode(text)

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """As the subject's."""
        with self.ledger.part(TEXT):
            return super().decode_text(token_ids)

    def capture(self, *args: Any, **options: Any) -> Any:
        """As the subject's."""
        with self.ledger.part(REFERENCES):
            return super().capture(*args, **options)

    def decoder(self, sampling: Sampling) -> Decoder:
        """As the subject's, with its work booked."""
        return TimedDecoder(self.network, sampling, self.tally, self.ledger)


@dataclass(frozen=True)
class TimedScorer:
    """A scorer, with its work booked. Implements `harness.types.Scorer`."""

    scorer: Scorer
    ledger: Ledger

    @property
    def name(self) -> str:
        """Which model scores."""
        return self.scorer.name

    def loglikelihood(self, prompts: Sequence[str], completions: Sequence[str]) -> list[tuple[float, int]]:
        """As the scorer's."""
        with self.ledger.part(SCORER):
            return self.scorer.loglikelihood(prompts, completions)


def _search(job: Job, bench: Workbench, examples: Sequence[Example], setting: Setting) -> None:
    """Fit, and search chunk by chunk, as a run does."""
    bench.fit()
    prepared = job.search.prepare(bench, [], setting)
    size = job.search.chunk_size(job.engine.max_rows or AT_ONCE)
    for start in range(0, len(examples), size):
        job.search.select(bench, examples[start : start + size], prepared, setting)
        bench.forget_conditions()


def measure(jobs: Jobs, prompts: int, trials: int, new_tokens: int) -> dict[str, Any]:
    """Search segmented steering for each of ``prompts`` questions with the usual objective, records written to disk.

    Args:
        jobs: makes the harness's objects.
        prompts: questions of the task ``facts``.
        trials: trials per question; the un-steered text comes on top.
        new_tokens: completion length at most; texts may end earlier.

    Raises:
        ValueError: the task has fewer questions.
    """
    job = jobs.job(
        "method=segmented",
        "search=per_prompt",
        "task=facts",
        f"task.limit={prompts}",
        f"task.max_new_tokens={new_tokens}",
        f"num_trials={trials}",
    )
    examples = job.task.examples("test")
    if len(examples) < prompts:
        raise ValueError(f"task facts has {len(examples)} test questions, wanted {prompts}")

    ledger = Ledger(jobs.models.watch)
    plain, tally = jobs.models.subject(), Tally(clock=ledger.watch.seconds)
    subject = TimedSubject(plain.network, plain.tokenizer, plain.template, plain.name, job.engine, tally, ledger=ledger)
    subject.forget_captures()
    bench = jobs.workbench(job, subject=subject)
    ours.decoded(plain.network, encoded(bench, examples[:2]), Intervention(), 2, ledger.watch)

    scorer = job.scoring.scorer.open(job.scoring.scoring_model, subject)
    tools = Tools(scorer=TimedScorer(scorer, ledger), judge=job.scoring.judge)
    with tempfile.TemporaryDirectory() as folder, phase("search", job.search.num_trials_of(prompts)) as advance:
        store = GenerationStore(Path(folder))
        meter = Meter(lambda: tally.forward_tokens)
        setting = Setting(job.objective, tools, job.seed, store, meter, advance)
        ledger.seconds.clear()

        with ledger.part(REST):
            _search(job, bench, examples, setting)
        tokens = [len(trial.generation.token_ids) for trial in store.trials()]

    ledger.split(ENGINE, {PREFILL: tally.prefill_seconds, DECODE: tally.decode_seconds})
    return _figures(ledger.seconds, prompts, trials, new_tokens, tokens)


def _figures(
    parts: Mapping[str, float], prompts: int, trials: int, new_tokens: int, tokens: Sequence[int]
) -> dict[str, Any]:
    seconds = sum(parts.values())
    order = (PREFILL, DECODE, ENGINE, REFERENCES, SCORER, TEXT, REST)
    return {
        "prompts": prompts,
        "trials_per_prompt": trials,
        "new_tokens": new_tokens,
        "texts": len(tokens),
        "tokens": sum(tokens),
        "seconds": seconds,
        "trials_per_second": prompts * trials / seconds,
        "parts": {name: {"seconds": parts.get(name, 0.0), "share": parts.get(name, 0.0) / seconds} for name in order},
    }


def table(result: Mapping[str, Any]) -> str:
    """Markdown: one line per part, then the speed."""
    rows = [(name, f"{part['seconds']:.2f}", f"{part['share']:.1%}") for name, part in result["parts"].items()]
    summary = (
        f"{result['prompts']} prompts x {result['trials_per_prompt']} trials in {result['seconds']:.1f} s: "
        f"{result['trials_per_second']:.2f} trials/s ({result['texts']} texts with the un-steered ones, "
        f"{result['tokens'] / result['texts']:.1f} tokens each)"
    )
    return "\n".join([grid(("part", "s", "share"), rows), "", summary])
