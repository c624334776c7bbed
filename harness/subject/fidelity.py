"""Does the engine compute what transformers computes? A look at the first logits of the model at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.subject import attention
from harness.subject.attention import Plan
from harness.subject.network import Network, Padded
from harness.subject.slots import SlotCache

if TYPE_CHECKING:
    from jaxtyping import Float

_LENGTHS = (23, 9, 16)
"""Tokens of the prompts that are compared: of different lengths, so that padding plays its part."""
_ALLOWED = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}
"""Largest difference by dtype, in standard deviations of the logits. What is left out makes one or more; rounding
half of these bounds or less. (In float64 transformers still takes the softmax of attention in float32.)"""


@dataclass(frozen=True)
class Agreement:
    """How the engine's logits stand to transformers' own.

    Args:
        difference: the largest difference of two logits.
        spread: standard deviation of transformers' logits.
        allowed: the largest difference that rounding explains, in the same unit.
    """

    difference: float
    spread: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether they are the same but for rounding; never for what is not a number."""
        return self.difference <= self.allowed

    def __str__(self) -> str:
        verdict = "as" if self.holds else "NOT as"
        return (
            f"first logits {verdict} transformers computes them: they differ by at most {self.difference:.2g} "
            f"(spread {self.spread:.2g}, rounding explains {self.allowed:.2g})"
        )


@torch.no_grad()
def first_logits(network: Network) -> Agreement:
    """Compare the logits of a few short prompts, read whole and token by token, with those of transformers' own code.

    The weights are the same for both; what differs is attention, the key/value storage, positions, padding, and what
    comes behind the last block. It takes a handful of short passes.

    Raises:
        ValueError: the architecture asks its attention for something that the engine refuses to leave out.
    """
    vocabulary = network.model.get_output_embeddings().out_features
    prompts = [[(97 * row + 31 * at + 5) % vocabulary for at in range(length)] for row, length in enumerate(_LENGTHS)]
    ours = _by_the_engine(network, prompts)
    theirs = _by_transformers(network, prompts)
    difference = max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))
    spread = float(torch.cat(theirs).std())
    return Agreement(difference, spread, _ALLOWED[network.dtype] * spread)


def demand_fidelity(network: Network) -> None:
    """Refuse a model that the engine does not compute as transformers does.

    Raises:
        ValueError: the logits differ by more than rounding, or the architecture asks for what the engine does not have.
    """
    agreement = first_logits(network)
    if not agreement.holds:
        kind = network.model.config.model_type
        raise ValueError(
            f"the harness cannot run this {kind} model: {agreement}. Its code does something that the engine leaves out"
        )


def _by_the_engine(network: Network, prompts: Sequence[Sequence[int]]) -> list[Float[Tensor, "T V"]]:
    """Logits of every position; that of the last token comes from a decoding step on stored keys and values."""
    device, slots = network.device, torch.arange(len(prompts), device=network.device)
    cache = SlotCache(network.layout.num_layers, len(prompts), max(map(len, prompts)))
    cache.expect_prompts(slots)
    padded = Padded.of([prompt[:-1] for prompt in prompts], device)
    h = network.hidden(padded.ids, padded.positions, Plan(), cache)

    positions = padded.lengths[:, None]
    cache.expect_tokens(slots, padded.lengths, cache.capacity)
    last = torch.tensor([[prompt[-1]] for prompt in prompts], device=device)
    step = network.hidden(last, positions, Plan(padded.lengths + 1), cache)
    rows = [torch.cat([h[row, : len(prompt) - 1], step[row]]) for row, prompt in enumerate(prompts)]
    return [network.logits(row).double() for row in rows]


def _by_transformers(network: Network, prompts: Sequence[Sequence[int]]) -> list[Float[Tensor, "T V"]]:
    """Logits of every position, each prompt alone, with transformers' plain attention."""
    model = network.model
    model.set_attn_implementation("eager")
    try:
        rows = [torch.tensor([list(prompt)], device=network.device) for prompt in prompts]
        return [model(input_ids=row, use_cache=False).logits[0].double() for row in rows]
    finally:
        model.set_attn_implementation(attention.IMPLEMENTATION)
