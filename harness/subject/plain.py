"""Steering on a plain transformers model, outside the engine: in somebody's own loop, pipeline or server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from harness.steering import STORED_STREAMS, Carry, Intervention, Where
from harness.subject.hooks import Steering, before_each_pass
from harness.subject.sites import Blocks

RowsToIntervention = Callable[[int], Intervention]
"""What to do to a batch of so many rows."""


@contextmanager
def steered(model: Any, of_rows: RowsToIntervention, blocks_path: str | None = None) -> Iterator[None]:
    """Steer every forward pass of a transformers causal language model inside the block.

    ``model.generate`` with a key-value cache gives the tokens that the engine gives for the same prompt. A pass that
    starts without a cache counts as a prompt, whole; rows must keep their places, so beam search is not for this.

    Args:
        model: the model; it is left as it was.
        of_rows: the intervention for a batch.
        blocks_path: dotted path of its decoder blocks, for architectures that the harness does not know.

    Raises:
        ValueError: unknown architecture, or an intervention that needs the engine.
    """
    one_row = of_rows(1)
    if not one_row.uses_cache or one_row.gradients:
        needs = "recomputes the text at every step" if not one_row.uses_cache else "needs gradients while it decodes"
        raise ValueError(f"this method {needs}, which a plain forward pass does not do: generate with harness.load")
    if one_row.groups is not None:
        raise ValueError(
            "this method steers samples of one prompt together, and a plain forward pass does not tell which they are: "
            "generate with harness.load"
        )
    if any(site.stream in STORED_STREAMS for site in (*one_row.edits, *one_row.probes)):
        raise ValueError(
            "this method edits keys or values that are stored, which only the harness's attention does: generate with "
            "harness.load"
        )
    passes = _Passes(of_rows)
    steering = Steering(Blocks.of(model, blocks_path), one_row)

    def look(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        steering.carry, steering.where, steering.intervention = passes.begin(args, kwargs, steering.carry)

    with before_each_pass(model.base_model, look), steering:
        yield


class _Passes:
    """Follows a model's forward passes: which prompts they belong to, and at which positions they are."""

    def __init__(self, of_rows: RowsToIntervention) -> None:
        self._of_rows = of_rows
        self._intervention: Intervention | None = None
        self._prompt_lengths = torch.zeros(0, dtype=torch.long)

    def begin(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], carry: Carry
    ) -> tuple[Carry, Where, Intervention]:
        """What edits need to know about the pass that begins."""
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if tokens is None:
            tokens = kwargs["inputs_embeds"]
        rows, length = tokens.shape[:2]
        cache = kwargs.get("past_key_values")
        stored = 0 if cache is None else int(cache.get_seq_length())
        real = _real_tokens(kwargs.get("attention_mask"), rows, stored + length, tokens.device)

        positions = (real.cumsum(1) - 1)[:, stored:]
        if stored == 0:
            self._prompt_lengths = real.sum(1)
            self._intervention = self._of_rows(rows)
            carry = {}
        elif len(self._prompt_lengths) != rows or self._intervention is None:
            raise ValueError(
                f"a pass with {rows} rows goes on from a prompt pass with {len(self._prompt_lengths)}: steer from the "
                "prompt on, and without beam search"
            )
        here = real[:, stored:]
        where = Where(positions, None if bool(here.all()) else here, self._prompt_lengths, prefill=stored == 0)
        assert self._intervention is not None
        return carry, where, self._intervention


def _real_tokens(mask: Any, rows: int, length: int, device: torch.device) -> Tensor:
    """Which of all tokens so far are no padding."""
    if mask is None:
        return torch.ones(rows, length, dtype=torch.bool, device=device)
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise ValueError("attention_mask must be given as rows x tokens, 0 on padding")
    return mask[:, :length].bool()
