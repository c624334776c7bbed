"""The ways that steering is done without this harness: transformers' ``generate`` and plain forward hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from bench.timing import Stopwatch, Timing
from bench.work import Work
from harness.steering import Site
from harness.subject.sites import Blocks


class Plain(Protocol):
    """A model as transformers loads it."""

    @property
    def model(self) -> Any:
        """The model."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        ...


class _Clock(StoppingCriteria):
    """Notes the time of every new token and stops nothing."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.times.append(self.watch.now())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def forget_stops(model: Any) -> None:
    """Make ``generate`` go on to the full length."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0


@torch.inference_mode()
def generate(loaded: Plain, prompts: Sequence[list[int]], new_tokens: int, watch: Stopwatch, *, cache: bool) -> Timing:
    """Greedy completions of left-padded prompts in one call of transformers' ``generate``."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=loaded.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=loaded.device)

    clock = _Clock(watch)
    start = watch.now()
    out = loaded.model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        do_sample=False,
        use_cache=cache,
        stopping_criteria=StoppingCriteriaList([clock]),
    )

    completions = tuple(tuple(row) for row in out[:, longest:].tolist())
    return Timing(len(prompts), clock.times[0] - start, watch.now() - clock.times[0], 0.0, completions)


@contextlib.contextmanager
def hooked(loaded: Plain, work: Work, row: int) -> Iterator[None]:
    """One row's edits, as everybody writes them: a forward hook on every block."""
    blocks = Blocks.of(loaded.model)
    shifts = (work.strengths[row] * work.directions).to(loaded.device, loaded.model.dtype)

    def hook_for(shift: Tensor) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            return (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift

        return hook

    handles = [
        blocks.module(Site(layer))[0].register_forward_hook(hook_for(shift)) for layer, shift in enumerate(shifts)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def one_by_one(
    loaded: Plain, work: Work, rows: Sequence[int], watch: Stopwatch, *, cache: bool, score: bool = True
) -> Timing:
    """Trials one after the other, each with its own hooks, each scored by itself."""
    total = Timing(0, 0.0, 0.0, 0.0, ())
    for row in rows:
        with hooked(loaded, work, row):
            timing = generate(loaded, [work.prompts[row]], work.new_tokens, watch, cache=cache)
        if score:
            timing = timing.scored_in(scoring(loaded, [work.prompts[row]], timing.completions, watch, at_once=1))
        total = total + timing
    return total


@torch.inference_mode()
def scoring(
    loaded: Plain, prompts: Sequence[list[int]], completions: Sequence[Sequence[int]], watch: Stopwatch, at_once: int
) -> float:
    """Seconds that the un-steered model takes to score the completions, with whole logits, as tutorials do."""
    start = watch.now()
    for first in range(0, len(prompts), at_once):
        chosen = [
            [*prompt, *completion]
            for prompt, completion in zip(prompts[first : first + at_once], completions[first:], strict=False)
        ]
        longest = max(map(len, chosen))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in chosen], device=loaded.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in chosen], device=loaded.device)
        logits = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.transpose(1, 2).float(), ids[:, 1:], reduction="none").sum().item()
    return watch.now() - start
