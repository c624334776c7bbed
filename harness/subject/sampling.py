"""From logits to tokens: the best one or a drawn one, and when a row is done. Everything stays on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

NEAR_TIE = 1e-3
"""Two logits closer than this may swap places when a batch is composed differently."""
LOOP_WINDOW = 32
"""Tokens that a row must have repeated itself for to count as going round in circles."""
_LOOP_PERIOD = 8
_BLOCK = 128


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Args:
        max_new_tokens: completion length at most.
        temperature: 0 is greedy.
        ignore_stop: go on to the full length (for timing).
        prune_loops: end rows that repeat themselves; they finish as "pruned".
    """

    max_new_tokens: int
    temperature: float = 0.0
    ignore_stop: bool = False
    prune_loops: bool = False


def best_token(logits_BV: Float[Tensor, "B V"]) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    """The index of each row's largest logit (the first of several), and its lead over the second largest."""
    # In two stages, for an index over a whole vocabulary costs several times what the bare maximum does.
    rows, vocabulary = logits_BV.shape
    blocks = logits_BV.reshape(rows, -1, math.gcd(vocabulary, _BLOCK))
    tops = blocks.amax(-1)
    best, block = tops.max(-1)
    row = torch.arange(rows, device=logits_BV.device)
    inside = blocks[row, block]
    offset = inside.argmax(-1)
    inside[row, offset] = tops[row, block] = float("-inf")
    second = torch.maximum(inside.amax(-1), tops.amax(-1))
    return block * blocks.shape[2] + offset, best - second


def drawn_token(logits_BV: Float[Tensor, "B V"], temperature: float, uniform_B: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
    """One token per row, drawn by its probability: that at which the cumulated probability passes a random number.

    Args:
        logits_BV: float32, or float64.
        temperature: logits are divided by it; above 0.
        uniform_B: a random number from 0 to 1 for each row.
    """
    # In two stages, blocks and then tokens of one block: summed up one by one, a whole vocabulary in float32 would be
    # off by more than what most of its tokens weigh.
    rows, vocabulary = logits_BV.shape
    weights = torch.softmax(logits_BV / temperature, -1)
    blocks = pad(weights, (0, -vocabulary % _BLOCK)).reshape(rows, -1, _BLOCK)
    sums = blocks.sum(-1)
    ends = sums.cumsum(-1)
    target = _below(uniform_B.to(ends) * ends[:, -1], ends[:, -1])
    block = torch.searchsorted(ends, target[:, None], right=True)[:, 0]

    row = torch.arange(rows, device=logits_BV.device)
    inside = blocks[row, block].cumsum(-1)
    target = _below(target - (ends[row, block] - sums[row, block]), inside[:, -1])
    return block * _BLOCK + torch.searchsorted(inside, target[:, None], right=True)[:, 0]


def _below(value: Tensor, end: Tensor) -> Tensor:
    """The value, but less than the end: rounding must not choose a token that has no probability."""
    return torch.minimum(value, torch.nextafter(end, torch.zeros_like(end)))


def uniform_draws(seeds: Sequence[int], count: int) -> Float[Tensor, "B N"]:
    """Random numbers from 0 to 1 for each row, which depend on its seed alone; float32, on the CPU."""
    draws = np.stack([np.random.default_rng(seed).random(count) for seed in seeds])
    return torch.from_numpy(draws).float()


def is_looping(last_BN: Int[Tensor, "B N"]) -> Bool[Tensor, "B"]:
    """Whether each row's last `LOOP_WINDOW` tokens repeat a pattern of at most 8."""
    periods = range(1, _LOOP_PERIOD + 1)
    return torch.stack([(last_BN[:, p:] == last_BN[:, :-p]).all(1) for p in periods]).any(0)
