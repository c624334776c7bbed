"""The engine on a GPU: tokens per second, steered or not, compiled or not, beside transformers' own ``generate``.

Weights are drawn at random, so no hub is needed: time depends on shapes, not on values. Nothing but torch and
transformers is imported on the way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from bench import ours, plain
from bench.report import grid
from bench.timing import Stopwatch, Timing, median, ratio
from bench.work import Work, directions
from harness.steering import Intervention
from harness.subject.load import layout_of
from harness.subject.network import Network

_QWEN2: dict[str, Any] = {"model_type": "qwen2", "num_hidden_layers": 28, "max_position_embeddings": 32768}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "qwen2.5-7b": _QWEN2
    | {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4}
    | {"vocab_size": 152064, "tie_word_embeddings": False},
    "qwen2.5-1.5b": _QWEN2
    | {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2}
    | {"vocab_size": 151936, "tie_word_embeddings": True},
    "tiny": _QWEN2
    | {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    | {"num_key_value_heads": 2, "vocab_size": 320, "tie_word_embeddings": True},
}
"""What decides the time of a forward pass, by name. "tiny" is for a look at this bench itself."""
LARGE = ("qwen2.5-7b", "qwen2.5-1.5b")
CONFIGURATIONS = (0, 1, 16, 256, 1024)
"""Numbers of different strengths among the rows; 0: nothing is steered."""
_LENGTHS = (33, 45, 60, 41)
"""Tokens of prompts, in turn: 45 on average, as in the other tables."""
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


class NoGpuError(RuntimeError):
    """There is no GPU here, and nobody asked to do without one."""


def chosen_device(name: str) -> torch.device:
    """The device that ``--device`` names; "auto" is the GPU.

    Raises:
        NoGpuError: torch sees none.
    """
    if name == "cpu" or torch.cuda.is_available():
        return torch.device("cpu" if name == "cpu" else "cuda")
    raise NoGpuError(
        "no GPU here: torch.cuda.is_available() is False, so nothing was measured; "
        "`--gpu --device cpu --shapes tiny --batch 8` runs the same code on the processor"
    )


@dataclass(frozen=True)
class Held:
    """A model with random weights, and where it lies."""

    model: Any
    device: torch.device

    @classmethod
    def of(cls, shape: str, device: torch.device, dtype: torch.dtype) -> Held:
        """Draw the weights of a shape, on the device itself."""
        settings = dict(SHAPES[shape])
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        torch.manual_seed(0)
        with device:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
        plain.forget_stops(model)
        return cls(model, device)

    def network(self) -> Network:
        """The same model as the harness holds it; from then on transformers' ``generate`` cannot run it."""
        return Network.of(self.model, layout_of(self.model.config), self.device, frozenset())


@dataclass(frozen=True)
class Case:
    """One way to run the engine.

    Args:
        configurations: different strengths among the rows; 0: un-steered.
        compiled: decode with graphs.
    """

    configurations: int
    compiled: bool

    @property
    def label(self) -> str:
        """For tables."""
        steered = f"steered, {self.configurations:,} configurations" if self.configurations else "un-steered"
        return f"engine, {steered}{', compiled' if self.compiled else ''}"


@dataclass
class Measured:
    """What was timed of one shape.

    Args:
        timings: by label, one per repeat.
        counts: by label: kernel launches, graph launches and waits for the device, per step.
        left_out: by label, the reason.
    """

    timings: dict[str, list[Timing]] = field(default_factory=dict)
    counts: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """What is measured.

    Args:
        device: where.
        rows: at once.
        new_tokens: of each row.
        repeats: at most; each runs all ways.
        compiled: whether to measure compiled decoding as well.
        minutes: per shape. Ways that come too late are left out, and repeats end.
        note: told about progress.
    """

    device: torch.device
    rows: int
    new_tokens: int
    repeats: int
    compiled: bool
    minutes: float
    note: Callable[[str], None]

    def shape(self, name: str, dtype: torch.dtype) -> dict[str, Any]:
        """Measure one shape: transformers first, then the engine, which takes the same weights over."""
        deadline = monotonic() + 60 * self.minutes
        watch = Stopwatch(self.device)
        self.note(f"{name}: drawing weights")
        held = Held.of(name, self.device, dtype)
        work = _work(held.model.config, self.rows, self.new_tokens)

        measured = Measured()
        theirs = {
            "one trial at a time, hooks, generate without cache": lambda: plain.one_by_one(
                held, work, [0], watch, cache=False, score=False
            ),
            "generate, batched, un-steered": lambda: plain.generate(
                held, work.prompts, work.new_tokens, watch, cache=True
            ),
        }
        self._time(theirs, measured, deadline)

        network = held.network()
        cases = [Case(number, compiled) for compiled in (False, True) for number in CONFIGURATIONS]
        cases = [case for case in cases if case.configurations <= self.rows and (self.compiled or not case.compiled)]
        calls = {case.label: _engine(network, work, case, watch) for case in cases}
        self._time(calls, measured, deadline)
        for label in measured.timings:
            if label in calls and monotonic() < deadline:
                measured.counts[label] = _counts(calls[label], self.new_tokens)
        return {
            "dtype": str(dtype).removeprefix("torch."),
            "parameters": sum(weight.numel() for weight in held.model.parameters()),
            "rows": self.rows,
            "new_tokens": self.new_tokens,
            "peak_bytes": torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None,
            **figures(measured, cases, self.new_tokens),
        }

    def _time(self, calls: Mapping[str, Callable[[], Timing]], measured: Measured, deadline: float) -> None:
        """Run each way once without counting, then all of them in turn, so that they share the machine's moods."""
        ready: dict[str, Callable[[], Timing]] = {}
        for label, call in calls.items():
            if monotonic() > deadline:
                measured.left_out[label] = "time was up"
                continue
            try:
                seconds = call().generation
            except torch.OutOfMemoryError:
                measured.left_out[label] = "memory ran out"
                continue
            ready[label] = call
            self.note(f"{label}: ready, {seconds:.1f} s with warming up")

        for repeat in range(self.repeats):
            if repeat and monotonic() > deadline:
                self.note(f"time was up after {repeat} repeats")
                break
            for label, call in ready.items():
                measured.timings.setdefault(label, []).append(call())
                self.note(f"{label}: {measured.timings[label][-1].generation:.2f} s")


def _work(config: Any, rows: int, new_tokens: int) -> Work:
    """Prompts of random tokens, of few lengths."""
    drawn = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(1, config.vocab_size, (_LENGTHS[row % len(_LENGTHS)],), generator=drawn).tolist()
        for row in range(rows)
    ]
    return Work(prompts, new_tokens, directions(layout_of(config)), torch.linspace(0.1, 1.0, rows))


def _engine(network: Network, work: Work, case: Case, watch: Stopwatch) -> Callable[[], Timing]:
    intervention = Intervention()
    if case.configurations:
        strengths = torch.linspace(0.1, 1.0, case.configurations)[torch.arange(work.rows) % case.configurations]
        intervention = dataclasses.replace(work, strengths=strengths).intervention(network.device, network.dtype)

    def run() -> Timing:
        # The engine never waits for the device, so only the whole run can be timed.
        start = watch.now()
        timing = ours.decoded(
            network, work.prompts, intervention, work.new_tokens, watch, work.rows, compiled=case.compiled
        )
        return Timing(work.rows, 0.0, watch.now() - start, 0.0, timing.completions)

    return run


def _counts(call: Callable[[], Timing], steps: int) -> dict[str, float]:
    """Kernel launches, graph launches and waits of the host per new token of a row, prompts included."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + torch.cuda.is_available()]) as seen:
        call()
    number = {event.key: event.count for event in seen.key_averages()}
    return {
        "operators": sum(count for key, count in number.items() if key.startswith("aten::")) / steps,
        "launches": sum(number.get(key, 0) for key in _LAUNCHES) / steps,
        "graph_launches": number.get("cudaGraphLaunch", 0) / steps,
        "waits": sum(number.get(key, 0) for key in _WAITS) / steps,
    }


def figures(measured: Measured, cases: Sequence[Case], new_tokens: int) -> dict[str, Any]:
    """Medians of every way, and what steering costs within a repeat.

    Args:
        measured: timings and counts.
        cases: those of the engine.
        new_tokens: of each row.
    """
    ways: dict[str, dict[str, Any]] = {}
    for label, timings in measured.timings.items():
        ways[label] = {
            "tokens_per_second": median(timings, lambda timing: timing.trials * new_tokens / timing.generation),
            "trials_per_second": median(timings, lambda timing: timing.trials / timing.generation),
            "seconds": [timing.generation for timing in timings],
            "per_step": measured.counts.get(label),
        }
    for case in cases:
        unsteered = Case(0, case.compiled).label
        if case.configurations and case.label in ways and unsteered in ways:
            pair = measured.timings[case.label], measured.timings[unsteered]
            ways[case.label]["of_unsteered"] = ratio(*pair, lambda timing: timing.generation)
    return {"ways": ways, "left_out": measured.left_out}


def table(result: Mapping[str, Any]) -> str:
    """Markdown: one line per way, then what was left out."""
    header = ("way", "tokens/s", "trials/s", "of un-steered", "launches/step", "graphs/step", "waits/step")
    lines = []
    for label, way in result["ways"].items():
        counts = way["per_step"] or {}
        shown = [f"{counts[key]:.1f}" if key in counts else "" for key in ("launches", "graph_launches", "waits")]
        share = f"{way['of_unsteered']:.2f}" if "of_unsteered" in way else ""
        lines.append([label, f"{way['tokens_per_second']:,.0f}", f"{way['trials_per_second']:.3g}", share, *shown])
    left_out = [f"left out: {label} ({reason})" for label, reason in result["left_out"].items()]
    return "\n".join([grid(header, lines), *(["", *left_out] if left_out else [])])
