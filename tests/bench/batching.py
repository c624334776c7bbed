"""Whether a row's tokens depend on the rows beside it: the same rows in large and in small batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from bench.suite import Models
from bench.work import Work
from harness.subject.batch import Decoded
from harness.subject.decode import Decoder
from harness.subject.passes import next_token_logprobs
from harness.subject.sampling import NEAR_TIE, Sampling
from harness.subject.sizes import EngineConfig

LARGE, SMALL = 64, 16


def measure(models: Models, rows: int, new_tokens: int) -> dict[str, Any]:
    """Decode the same steered rows, each with a strength of its own, in batches of two sizes.

    Returns:
        How many rows differ, and in how many the two best tokens lay closer than `NEAR_TIE` (in log-probability)
        where they first differ: there either is right. All others would be mistakes.
    """
    network = models.subject().network
    work = Work.of(models.plain(), rows, new_tokens)
    intervention = work.intervention(network.device, network.dtype)

    def decode(at_once: int) -> list[Decoded]:
        decoder = Decoder(network, work.prompts, intervention, Sampling(new_tokens, ignore_stop=True), [0] * rows)
        return decoder.run(EngineConfig(max_rows=at_once))

    large, small = decode(LARGE), decode(SMALL)
    gaps = []
    for row, (one, other) in enumerate(zip(large, small, strict=True)):
        if one.token_ids != other.token_ids:
            gaps.append(_gap(models, work, row, one.token_ids, other.token_ids))
    return {
        "rows": rows,
        "tokens": rows * new_tokens,
        "batches": [LARGE, SMALL],
        "near_tie_below": NEAR_TIE,
        "steps_with_near_ties": sum(row.near_ties for row in large),
        "rows_that_differ": len(gaps),
        "of_them_at_a_near_tie": sum(gap < NEAR_TIE for gap in gaps),
        "largest_gap": max(gaps, default=0.0),
    }


def _gap(models: Models, work: Work, row: int, one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """How far apart the two tokens are, in log-probability, where two texts of a row first differ."""
    network = models.subject().network
    at = next(index for index, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
    chosen = dataclasses.replace(work, prompts=[work.prompts[row]], strengths=work.strengths[row : row + 1])
    intervention = chosen.intervention(network.device, network.dtype)
    with torch.inference_mode():
        logprobs = next_token_logprobs(
            network, [[*work.prompts[row], *one[:at]]], intervention, models.subject().tally
        )[0]
    return float((logprobs[one[at]] - logprobs[other[at]]).abs())


def table(timings: dict[str, Any]) -> str:
    """In words."""
    return (
        f"{timings['rows']} rows in batches of {LARGE} and of {SMALL}: {timings['rows_that_differ']} differ, "
        f"{timings['of_them_at_a_near_tie']} of them first where two tokens were closer than {NEAR_TIE:g} "
        f"(largest gap {timings['largest_gap']:.2g}); "
        f"near ties in {timings['steps_with_near_ties']} of {timings['tokens']} steps"
    )
