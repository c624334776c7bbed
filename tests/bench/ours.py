"""The harness's own engine at the bench's work, and the ceiling: the weight products that no engine can leave out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from bench.timing import Stopwatch, Timing
from bench.work import Work
from harness.steering import Intervention
from harness.subject.decode import Decoder
from harness.subject.network import Network, logit_rows, pass_tokens
from harness.subject.passes import Text, loglikelihood
from harness.subject.sampling import Sampling
from harness.subject.sizes import EngineConfig
from harness.subject.tally import Tally


def decoded(
    network: Network,
    prompts: Sequence[Sequence[int]],
    intervention: Intervention,
    new_tokens: int,
    watch: Stopwatch,
    at_once: int | None = None,
    *,
    compiled: bool = False,
) -> Timing:
    """Greedy completions of one length in one pool, ``at_once`` rows (all, if None) together; nothing is scored."""
    tally = Tally(clock=watch.seconds)
    sampling = Sampling(new_tokens, ignore_stop=True)
    decoder = Decoder(network, prompts, intervention, sampling, [0] * len(prompts), tally)
    rows = decoder.run(EngineConfig(max_rows=at_once or len(prompts), token_budget=10**9, compile=compiled))
    return Timing(len(prompts), tally.prefill_seconds, tally.decode_seconds, 0.0, tuple(row.token_ids for row in rows))


def engine(
    network: Network,
    work: Work,
    intervention: Intervention,
    watch: Stopwatch,
    *,
    score: bool = True,
) -> Timing:
    """All rows together; then their completions scored un-steered."""
    timing = decoded(network, work.prompts, intervention, work.new_tokens, watch)
    return timing.scored_in(scoring(network, work, timing.completions, watch)) if score else timing


@torch.inference_mode()
def scoring(network: Network, work: Work, completions: Sequence[tuple[int, ...]], watch: Stopwatch) -> float:
    """Seconds that the un-steered network takes to score the completions."""
    start = watch.now()
    texts = [Text(tuple(prompt), row) for prompt, row in zip(work.prompts, completions, strict=True)]
    sum(float(row.sum()) for row in loglikelihood(network, texts, Intervention(), Tally()))
    return watch.now() - start


@dataclass(frozen=True)
class Products:
    """Every weight matrix of a model, to be multiplied and nothing else.

    Args:
        blocks: those inside the decoder blocks.
        head: the vocabulary's.
        packed: through the layers as the harness holds them, not through torch's own ``linear``.
    """

    blocks: tuple[nn.Module, ...]
    head: nn.Module
    packed: bool = False

    @classmethod
    def of(cls, model: Any, packed: bool = False) -> Products:
        """Find the linear layers of a transformers model."""
        head = model.get_output_embeddings()
        linears = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
        return cls(tuple(linears), head, packed)

    def bound(self, work: Work, watch: Stopwatch, score: bool) -> Callable[[], Timing]:
        """To be called once per repeat."""
        return lambda: self.timing(work, watch, score)

    @torch.inference_mode()
    def timing(self, work: Work, watch: Stopwatch, score: bool = True) -> Timing:
        """The products that the work needs: prompts without padding, one token at a time, then whole texts."""
        prompt_tokens = sum(map(len, work.prompts))
        text_tokens = prompt_tokens + work.rows * work.new_tokens
        inputs = self._inputs(max(pass_tokens(watch.device), work.rows), watch.device)

        marks = [watch.now()]
        self._pass(inputs, prompt_tokens, work.rows)
        marks.append(watch.now())
        for _ in range(work.new_tokens - 1):
            self._pass(inputs, work.rows, work.rows)
        marks.append(watch.now())
        if score:
            self._pass(inputs, text_tokens, work.rows * work.new_tokens)
        marks.append(watch.now())
        return Timing(work.rows, *(late - early for early, late in itertools.pairwise(marks)))

    def _inputs(self, rows: int, device: torch.device) -> dict[int, Tensor]:
        widths = {_widths(layer)[0] for layer in (*self.blocks, self.head)}
        return {width: torch.randn(rows, width, dtype=self.head.weight.dtype, device=device) for width in widths}

    def _pass(self, inputs: dict[int, Tensor], tokens: int, predictions: int) -> None:
        device = next(iter(inputs.values())).device
        for size in _chunks(tokens, pass_tokens(device)):
            # the same tensor for all layers of a width, by which joint products know that they may be shared
            states = {width: rows[:size] for width, rows in inputs.items()}
            for layer in self.blocks:
                self._multiply(layer, states[_widths(layer)[0]])
        for size in _chunks(predictions, logit_rows(device)):
            self._multiply(self.head, inputs[_widths(self.head)[0]][:size])

    def _multiply(self, layer: nn.Module, x: Tensor) -> None:
        if self.packed:
            layer(x)
        elif isinstance(layer, Conv1D):
            linear(x, layer.weight.t(), layer.bias)
        else:
            linear(x, layer.weight, layer.bias)


def _widths(layer: Any) -> Sequence[int]:
    return layer.weight.shape if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)


def _chunks(total: int, limit: int) -> list[int]:
    return [min(limit, total - start) for start in range(0, total, limit)]
