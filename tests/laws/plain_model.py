"""The tiny model as transformers runs it, steered by hand: what the engine's results are held against.

Nothing of the engine is in here: whole sequences, one row at a time, no cache, no padding, hooks of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from harness.subject.load import ModelConfig, load_model

Edit = Callable[[Tensor], Tensor]
"""A new state of all tokens of one row (T, D)."""


class PlainModel:
    """A Llama whose blocks' outputs are changed by functions of the whole row."""

    def __init__(self) -> None:
        self.model = load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float64")).model

    @torch.no_grad()
    def run(self, ids: Sequence[int], edits: Mapping[int, Edit]) -> tuple[Tensor, list[Tensor]]:
        """Logits (T, V), and each block's output (T, D) after its edit."""
        states: list[Tensor] = []
        with ExitStack() as stack:
            for layer, block in enumerate(self.model.model.layers):
                handle = block.register_forward_hook(self._hook(edits.get(layer), states))
                stack.callback(handle.remove)
            logits = self.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
        return logits, states

    @staticmethod
    def _hook(edit: Edit | None, states: list[Tensor]) -> Callable:
        def hook(_module: object, _args: object, output: Tensor) -> Tensor:
            new = output[0] if edit is None else edit(output[0])
            states.append(new)
            return new[None]

        return hook

    def states(self, ids: Sequence[int], edits: Mapping[int, Edit] | None = None) -> list[Tensor]:
        """Each block's output (T, D)."""
        return self.run(ids, edits or {})[1]

    def greedy(self, prompt: Sequence[int], edits: Mapping[int, Edit], new_tokens: int) -> tuple[int, ...]:
        """The likeliest token, again and again, from the start each time; nothing stops it."""
        written: list[int] = []
        while len(written) < new_tokens:
            written.append(int(self.run([*prompt, *written], edits)[0][-1].argmax()))
        return tuple(written)

    def loglikelihood(self, prompt: Sequence[int], completion: Sequence[int], edits: Mapping[int, Edit]) -> float:
        """Summed log-probability of the completion's tokens."""
        logits, _ = self.run([*prompt, *completion], edits)
        logprobs = torch.log_softmax(logits, -1)
        return sum(float(logprobs[len(prompt) + place - 1, token]) for place, token in enumerate(completion))
