"""What the laws of methods measure with: rows of real states, predictions, hooks that are left."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.laws.lab import Lab
from harness.laws.states import Rows, Side, sites_of
from harness.subject.network import Network
from harness.subject.passes import next_token_logprobs
from harness.types import Artifact, Intervention

FILLER = (30, 41, 52, 63, 74)
"""Tokens that stand for a completion."""
SIDES: tuple[Side, ...] = ("left", "right")


def rows_of(lab: Lab, intervention: Intervention) -> Rows:
    """States of every row's prompt with a completion of a length of its own, at all sites of the intervention.

    Rows that are steered together are in step: theirs are of one length, and differ in what they say.
    """
    prompts, units = lab.prompts(), lab.units()
    texts = [list(prompt) for prompt in prompts]
    for number, members in enumerate(units):
        for place, row in enumerate(members):
            texts[row] += [token + place for token in FILLER[: 2 + number % 3]]
    lengths = [len(prompt) for prompt in prompts]
    return Rows.of(lab.bench.subject.network, sites_of(intervention), texts, lengths)


def hooks_of(network: Network) -> int:
    """Hooks on any part of the model."""
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in network.model.modules())


def same(first: Artifact, second: Artifact) -> bool:
    """Whether two artifacts hold the same tensors, bit for bit."""
    return first.keys() == second.keys() and all(
        value.dtype == second[name].dtype and torch.equal(value, second[name]) for name, value in first.items()
    )


def assert_close(actual: Tensor, due: Tensor) -> None:
    """Equal within what float32 holds: methods may keep what they look up in it, also for a model in float64."""
    torch.testing.assert_close(actual, due, rtol=1e-5, atol=1e-5)


def logprobs_of(lab: Lab, intervention: Intervention) -> Tensor:
    """Next-token log-probabilities after every prompt."""
    return next_token_logprobs(lab.bench.subject.network, lab.prompts(), intervention, lab.bench.subject.tally)
