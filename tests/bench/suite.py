"""The ways side by side: every repeat runs all of them, so that a busy machine slows all of them alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench import ours, plain
from bench.timing import Clock, Stopwatch, Timing
from bench.work import Work
from harness.steering import Intervention
from harness.subject.load import Loaded, ModelConfig, device_of, load_model
from harness.subject.local import LocalSubject
from harness.subject.network import Network
from harness.subject.scorers import open_subject

WAYS: Mapping[str, str] = {
    "a": "one trial at a time, plain hooks, generate without KV cache",
    "b": "one trial at a time, plain hooks, generate with KV cache",
    "c": "generate, batched, un-steered",
    "d": "engine, un-steered",
    "e": "engine, every layer steered, a strength per row",
    "e16": "the same in bfloat16",
    "f": "ceiling: weight products alone, torch's linear",
    "fp": "ceiling: weight products alone, packed weights",
}
PLAIN_SCORING_ROWS = 8
"""Rows whose whole logits exist at once when batched generate's completions are scored."""


@dataclass(eq=False)
class Models:
    """The copies of one model that the ways need; each is loaded when it is first asked for."""

    config: ModelConfig
    clock: Clock = "wall"
    scores: bool = True
    _loaded: dict[str, Loaded] = field(default_factory=dict)
    _subjects: dict[str, LocalSubject] = field(default_factory=dict)

    def plain(self) -> Loaded:
        """As transformers loads it, with torch's attention; it never stops by itself."""
        if "plain" not in self._loaded:
            self._loaded["plain"] = load_model(self.config)
            plain.forget_stops(self._loaded["plain"].model)
        return self._loaded["plain"]

    @property
    def watch(self) -> Stopwatch:
        """What times everything."""
        return Stopwatch(device_of(self.config), self.clock)

    def subject(self, dtype: str | None = None) -> LocalSubject:
        """As the harness holds it."""
        name = dtype or self.config.dtype
        if name not in self._subjects:
            self._subjects[name] = open_subject(load_model(dataclasses.replace(self.config, dtype=name)))
        return self._subjects[name]


def way(name: str, models: Models, work: Work, singles: int) -> Callable[[], Timing]:
    """What to call to run a way once.

    Args:
        name: a key of `WAYS`.
        models: model copies.
        work: all rows.
        singles: how many rows the ways that take one trial at a time do.

    Raises:
        ValueError: no such way.
    """
    match name:
        case "a" | "b":
            return lambda: plain.one_by_one(
                models.plain(), work, range(singles), models.watch, cache=name == "b", score=models.scores
            )
        case "c":
            return lambda: _batched(models, work)
        case "d":
            return lambda: _engine(models, models.subject().network, work, Intervention())
        case "e" | "e16":
            network = models.subject("bfloat16" if name == "e16" else None).network
            intervention = work.intervention(network.device, network.dtype)
            return lambda: _engine(models, network, work, intervention)
        case "f":
            return ours.Products.of(models.plain().model).bound(work, models.watch, models.scores)
        case "fp":
            return ours.Products.of(models.subject().network.model, packed=True).bound(
                work, models.watch, models.scores
            )
    raise ValueError(f"way must be one of {', '.join(WAYS)}, got '{name}'")


def _batched(models: Models, work: Work) -> Timing:
    loaded, watch = models.plain(), models.watch
    timing = plain.generate(loaded, work.prompts, work.new_tokens, watch, cache=True)
    if not models.scores:
        return timing
    return timing.scored_in(plain.scoring(loaded, work.prompts, timing.completions, watch, PLAIN_SCORING_ROWS))


def _engine(models: Models, network: Network, work: Work, intervention: Intervention) -> Timing:
    return ours.engine(network, work, intervention, models.watch, score=models.scores)


def side_by_side(
    names: Sequence[str], models: Models, work: Work, repeats: int, singles: int, note: Callable[[str], None]
) -> dict[str, list[Timing]]:
    """Run all ways in turn, ``repeats`` times, after a short run of each that is not counted."""
    warm = dataclasses.replace(work, prompts=work.prompts[:2], strengths=work.strengths[:2], new_tokens=2)
    calls = {name: way(name, models, work, singles) for name in names}
    for name in names:
        way(name, models, warm, 1)()
    timings: dict[str, list[Timing]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name, call in calls.items():
            timings[name].append(call())
            note(f"repeat {repeat + 1} of {repeats}, ({name}): {timings[name][-1].total:.1f} s")
    return timings
