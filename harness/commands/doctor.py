"""`python -m harness.doctor …` (overrides as for a run): what it needs, what it will take, whether it can start."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal

import psutil
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import AutoModelForCausalLM

from harness.build import build
from harness.config import composed, expand, explain, swept
from harness.data import Access, Example
from harness.job import Job
from harness.lengths import check_lengths
from harness.records.provenance import device_name
from harness.records.tracking import Tracking
from harness.records.wandb_run import is_logged_in, wanted_mode
from harness.rehearsal import MOST_TESTS, Forecast, rehearse
from harness.report.claims import ALPHA
from harness.report.power import detectable_share, standard_effect
from harness.scoring import Evaluator, Grading, Metric
from harness.steering import Intervention
from harness.steps import dev_items, subject_for, tests_of
from harness.subject.amx import NOTICE, is_trapped
from harness.subject.fidelity import first_logits
from harness.subject.load import ResolvedModel
from harness.subject.sampling import Sampling
from harness.workbench import Workbench

State = Literal["ok", "note", "problem"]
_BYTES = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_QUANTIZED = {"int8": 1.0, "nf4": 0.5}
_ROWS, _STEPS = 8, 8
"""Size of the measurement: prompts, and tokens generated for each."""
_GIB = 2**30
_CHANGED = 0.2
"""Share of questions whose score differs between a method and its opponent, before anybody knows: a common one."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table."""

    topic: str
    state: State
    text: str


@dataclass(frozen=True)
class Speed:
    """What this machine does, in tokens per second."""

    prefill: float
    decode: float
    prompt_tokens: float
    """Mean length of a prompt."""


@dataclass(frozen=True)
class Work:
    """What a run takes: rows to generate, forward tokens and seconds."""

    rows: int
    tokens: int
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine; exit status 0 if the run can start, 1 if something stands in its way."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        print(f"{__doc__}\n\nusage: python -m harness.doctor [OVERRIDE ...]")
        return 0
    findings: list[Finding] = []
    try:
        for finding in examine([item for item in given if item not in ("-m", "--multirun")]):
            findings.append(finding)
    except Exception as error:  # whatever it is, it would stop the run as well
        findings.append(Finding("run", "problem", explain(error)))
    table = Table("what", "", "found", title="doctor")
    colours = {"ok": "green", "note": "yellow", "problem": "red"}
    for finding in findings:
        table.add_row(escape(finding.topic), f"[{colours[finding.state]}]{finding.state}[/]", escape(finding.text))
    Console().print(table)
    problems = [finding for finding in findings if finding.state == "problem"]
    print("cannot run: " + "; ".join(f"{f.topic}: {f.text}" for f in problems) if problems else "ready to run")
    return 1 if problems else 0


def examine(overrides: Sequence[str]) -> Iterator[Finding]:
    """Look at everything that the run needs, cheap things first; a measurement only if nothing stands in the way."""
    jobs: list[Job] = []
    broken = False
    for chosen in _jobs(overrides):
        try:
            jobs.append(build(*composed(chosen), chosen))
        except Exception as error:  # as a run would be stopped by it; the other jobs are still examined
            broken = True
            yield Finding("settings", "problem", f"{' '.join(chosen)}: {explain(error)}")

    if not jobs:
        return
    yield Finding("settings", "note" if broken else "ok", f"{len(jobs)} jobs can be built; no weights loaded for this")

    first = jobs[0]
    for model in {repr(job.model.config): job.model for job in jobs}.values():
        yield from _model(model)

    yield from _data(jobs)
    lengths = list(_lengths(jobs))
    yield from lengths
    broken = broken or bool(lengths)
    yield from _power(jobs)
    yield _judge(jobs)
    yield _disk(first.out)
    yield _tracking(first.tracking)
    if any(job.model.config.tensor_parallel > 1 for job in jobs):
        yield Finding("time", "note", "not measured: with model.tensor_parallel no process holds the model by itself")
    elif not broken:
        yield from _effort(jobs)


def _jobs(overrides: Sequence[str]) -> list[list[str]]:
    jobs = []
    for chosen in swept(overrides):
        config, choices = composed(chosen)
        jobs += expand(config, choices, chosen)
    return jobs


def _model(resolved: ResolvedModel) -> Iterator[Finding]:
    model, layout, device = resolved.config, resolved.layout, resolved.device
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(resolved.settings, trust_remote_code=model.trust_remote_code)
    weights = sum(weight.numel() for weight in empty.parameters())
    size = weights * _QUANTIZED.get(model.quantization, _BYTES[model.dtype]) / model.tensor_parallel
    summary = f"{model.label}: {weights / 1e6:,.1f} million weights, {layout.num_layers} layers"
    yield Finding("model", "ok", f"{summary}, {size / _GIB:.2f} GiB as {model.quantization} {model.dtype}")

    free = _free_bytes(device)
    name = f"{device.type} ({device_name(device)})"
    state: State = "ok" if size < 0.9 * free else "problem"
    yield Finding("device", state, f"{name}, {free / _GIB:.1f} GiB free for {size / _GIB:.2f} GiB of weights")

    if device.type == "cpu" and is_trapped():
        yield Finding("device", "note", NOTICE)


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _data(jobs: Sequence[Job]) -> Iterator[Finding]:
    for job in {repr(job.task): job for job in jobs}.values():
        tests = job.task.examples("test")
        origin = f" from {job.task.origin}" if job.task.origin != job.task.name else ""
        yield Finding(
            "data", "ok", f"{job.task.name}{origin}: {len(tests)} test items, first: {tests[0].question[:60]!r}"
        )


def _lengths(jobs: Sequence[Job]) -> Iterator[Finding]:
    """A problem for each job with prompts that do not fit into its model's context."""
    for job in jobs:
        try:
            check_lengths(job, [*tests_of(job, None), *dev_items(job)])
        except ValueError as error:
            name = f"prompts of {job.labels['method']}" if len(jobs) > 1 else "prompts"
            yield Finding(name, "problem", str(error))


def _power(jobs: Sequence[Job]) -> Iterator[Finding]:
    """What the planned questions can show of a task's primary metric, at the strictest step of Holm's correction."""
    for name in dict.fromkeys(job.labels["task"] for job in jobs):
        own = [job for job in jobs if job.labels["task"] == name]
        methods = [job for job in own if job.labels["control"] == "none" and job.labels["method"] != "baseline"]
        families = Counter(
            oracle for _, oracle in {(job.labels["method"], Access.GOLD in job.access) for job in methods}
        )
        num_tests = max(families.values(), default=1)
        num_units = len({example.unit for example in own[0].task.examples("test")})
        metric = _tested(own[0])
        yield Finding(
            "power", "ok", f"{name}: {num_units} questions, {num_tests} claims: {seen(metric, num_units, num_tests)}"
        )


def _tested(job: Job) -> Metric:
    """The metric that the task names, or the first that is scored."""
    metrics = [metric for evaluator in job.scoring.evaluators.values() for metric in evaluator.metrics]
    return next((metric for metric in metrics if metric.name == job.task.primary), metrics[0])


def seen(metric: Metric, num_units: int, num_tests: int) -> str:
    """The smallest gain over one opponent that would be found with 80 % power, in words.

    Args:
        metric: the one that is tested.
        num_units: questions, or clusters of them.
        num_tests: methods whose claims are corrected together.
    """
    level = ALPHA / num_tests
    if metric.kind != "proportion":
        effect = standard_effect(num_units, level)
        return f"{effect:.2g} standard deviations of the differences in {metric.name} can be seen"
    gain = detectable_share(num_units, _CHANGED, level)
    if gain is None:
        return f"too few to see any gain in {metric.name}"
    return f"a gain of {gain:.2g} in {metric.name} can be seen (80 % power, {_CHANGED:.0%} of the answers changed)"


def _judge(jobs: Sequence[Job]) -> Finding:
    gradings = [grading for job in jobs for grading in _gradings(job)]
    if not gradings:
        return Finding("judge", "ok", "not needed")
    first = next(job for job in jobs if any(_gradings(job)))
    judge = first.scoring.judge
    label = f"judge={first.labels['judge']} ({judge.identity})"
    # Answers are not known yet, so hardly any can be found in the cache.
    return Finding("judge", "ok", f"{label}: {judge.forecast(gradings)}")


def _gradings(job: Job) -> Iterator[Grading]:
    """What a job asks its judge, with placeholders for answers: the same ones for jobs that share their generations."""
    trials = job.search.num_trials_of(1) if job.protocol.scored_trials == "best" else 0
    yield from _placeholders(job, job.scoring.evaluators.values(), range(1 + trials))
    if job.search.needs_objective and "judge" in job.objective.needs:
        terms = [term.evaluator for term in job.objective.terms]
        yield from _placeholders(job, terms, range(job.search.num_trials_of(1)))
    if job.protocol.subset != "all":
        yield from _placeholders(job.unsteered(), job.scoring.grader.values(), range(1))


def _placeholders(job: Job, evaluators: Iterable[Evaluator], texts: range) -> Iterator[Grading]:
    words = "answer " * job.task.max_new_tokens
    for rubric in sorted({rubric for evaluator in evaluators for rubric in evaluator.rubrics}):
        for example in job.task.examples("test"):
            for number in texts:
                answer = f"{words}{job.keys.generations} {number}"
                yield Grading(rubric, example.question, example.answer, example.aliases, answer)


def _disk(out: Path) -> Finding:
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free = psutil.disk_usage(str(existing)).free
    return Finding("disk", "ok" if free > _GIB // 4 else "note", f"{free / _GIB:.1f} GiB free for {out}")


def _tracking(tracking: Tracking) -> Finding:
    mode = getattr(tracking, "mode", None)
    if mode is None:
        return Finding("W&B", "ok", "off (tracking=none)")
    try:
        logged_in = is_logged_in()
        mode = wanted_mode() if mode == "auto" else mode
    except Exception as error:  # a W&B that fails never stops a run
        return Finding("W&B", "note", f"cannot be used, runs go on without: {explain(error)}")
    login = "logged in" if logged_in else "not logged in"
    advice = "" if logged_in else "; copies stay on disk for `wandb sync`"
    return Finding("W&B", "ok", f"{mode}, {login}{advice}")


def _effort(jobs: Sequence[Job]) -> Iterator[Finding]:
    speeds: dict[str, Speed] = {}
    done: set[str] = set()
    total = Work(0, 0, 0.0)
    # Un-steered answers that decide a subset are work of their own, done once for all jobs.
    deciding = [job.unsteered() for job in jobs if job.protocol.subset != "all"]
    for job in [*deciding, *jobs]:
        if job.keys.generations in done:
            continue
        done.add(job.keys.generations)
        name = repr(job.model.config)
        if name not in speeds:
            yield _engine(job)
            speeds[name] = measure(job)
            yield _measured(speeds[name])
        work = estimate(rehearse(job), speeds[name])
        total = Work(total.rows + work.rows, total.tokens + work.tokens, total.seconds + work.seconds)
        if len(jobs) > 1:
            yield Finding(f"job {job.labels['method']} {job.labels['search']}", "ok", _spelt(work))
    most = "; at most, for the rows that count are not known yet" if deciding else ""
    yield Finding("in all", "ok", f"{_spelt(total)}, as {MOST_TESTS} items rehearsed it{most}")


def _engine(job: Job) -> Finding:
    """Whether the engine computes this model as transformers does: a look at its first logits."""
    agreement = first_logits(subject_for(job).network)
    return Finding("engine", "ok" if agreement.holds else "problem", str(agreement))


def _measured(speed: Speed) -> Finding:
    text = f"{speed.prefill:,.0f} prompt tokens/s, {speed.decode:,.0f} new tokens/s in a batch of at most {_ROWS} rows"
    return Finding("speed", "ok", text)


def _spelt(work: Work) -> str:
    minutes = work.seconds / 60
    time = (
        f"{work.seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    )
    return f"{work.rows:,} texts, {work.tokens:,} forward tokens, about {time}"


def measure(job: Job) -> Speed:
    """Load the model and time a few un-steered rows of the task."""
    subject = subject_for(job)
    bench = Workbench(subject, job.task, job.method, job.control, job.seed)
    examples: list[Example] = job.task.examples("test")[:_ROWS]
    prompts = [bench.subject.encode(bench.prompt(example)) for example in examples]

    def seconds(steps: int) -> float:
        start = perf_counter()
        bench.subject.decode(prompts, Intervention(), Sampling(steps, ignore_stop=True))
        return perf_counter() - start

    seconds(1)  # the first pass allocates and compiles
    one, many = seconds(1), seconds(1 + _STEPS)
    tokens = sum(map(len, prompts))
    return Speed(tokens / one, len(prompts) * _STEPS / max(many - one, 1e-6), tokens / len(prompts))


def estimate(forecast: Forecast, speed: Speed) -> Work:
    """What a rehearsed job takes at this speed: new tokens one by one, everything else as fast as prompts are read."""
    read = max(0.0, forecast.tokens - forecast.new_tokens)
    seconds = read / speed.prefill + forecast.new_tokens / speed.decode
    return Work(forecast.rows, round(forecast.tokens), seconds)
