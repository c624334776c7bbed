"""A loaded model cut open at the two places the engine needs: token ids to hidden states, hidden states to logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Cache

from harness.steering import Layout, Where
from harness.subject import attention
from harness.subject.attention import Plan
from harness.subject.head import keep_logits_exact
from harness.subject.packing import pack_linears
from harness.subject.sharding import is_sharded
from harness.subject.sites import Blocks

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def pass_tokens(device: torch.device) -> int:
    """Tokens, padding included, computed in one pass at most: few keep memory small, many keep an accelerator busy."""
    return 2048 if device.type == "cpu" else 8192


def logit_rows(device: torch.device) -> int:
    """Positions whose vocabulary-sized logits exist at once."""
    return 128 if device.type == "cpu" else 1024


@dataclass(frozen=True)
class Padded:
    """Token rows padded on the right to one length."""

    ids: Int[Tensor, "B T"]
    positions: Int[Tensor, "B T"]
    lengths: Int[Tensor, "B"]
    real: Bool[Tensor, "B T"] | None

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], device: torch.device) -> Padded:
        """Pad; ``real`` is None when all rows are equally long.

        Raises:
            ValueError: a row is empty: a model cannot start from nothing.
        """
        lengths = [len(row) for row in rows]
        if not lengths or min(lengths) == 0:
            raise ValueError("every row needs at least one token")
        longest = max(lengths)
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
        lengths_B = torch.tensor(lengths, device=device)
        positions = torch.arange(longest, device=device).expand(len(rows), -1)
        real = None if min(lengths) == longest else positions < lengths_B[:, None]
        return cls(ids, positions, lengths_B, real)

    def where(self, prompt_lengths: Int[Tensor, "B"], groups: Int[Tensor, "B"] | None = None) -> Where:
        """The description of a pass over these rows from position 0; ``groups`` are those of `Intervention`."""
        return Where(self.positions, self.real, prompt_lengths, prefill=True, groups=groups)


@dataclass(frozen=True)
class Network:
    """The model, its blocks, and the tokens at which it stops.

    Args:
        model: a transformers causal language model in evaluation mode.
        blocks: its decoder blocks.
        layout: its shape.
        device: where it lives.
        stop_ids: ids that end a completion.
    """

    model: Any
    blocks: Blocks
    layout: Layout
    device: torch.device
    stop_ids: frozenset[int]

    @classmethod
    def of(
        cls, model: Any, layout: Layout, device: torch.device, stop_ids: frozenset[int], blocks_path: str | None = None
    ) -> Network:
        """Take over a loaded model: from now on it computes attention and, on a CPU, products the harness's way."""
        model.set_attn_implementation(attention.IMPLEMENTATION)
        # Its advice on padding, which plans know of, reads token ids back from the device before each pass.
        model.base_model.warn_if_padding_and_no_attention_mask = lambda *_: None
        keep_logits_exact(model)
        if not is_sharded(model):  # a packed layer would forget that its product is a part of a sum
            pack_linears(model)
        return cls(model, Blocks.of(model, blocks_path), layout, device, stop_ids)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of hidden states."""
        return self.model.get_input_embeddings().weight.dtype

    def hidden(
        self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"], plan: Plan, cache: Cache | None = None
    ) -> Float[Tensor, "B T D"]:
        """Hidden states after the last block and the final norm."""
        return self.model.base_model(
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=cache is not None, plan=plan
        ).last_hidden_state

    def logits(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Next-token logits in float32, or float64 if the model is."""
        head: nn.Module = self.model.get_output_embeddings()
        logits = head(h)
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits if logits.dtype == torch.float64 else logits.float()

    def stop_mask(self) -> Bool[Tensor, "V"]:
        """True for the tokens that end a completion."""
        mask = torch.zeros(self.model.get_output_embeddings().out_features, dtype=torch.bool)
        mask[[token for token in self.stop_ids if token < len(mask)]] = True
        return mask.to(self.device)

    def cache_bytes_per_token(self) -> int:
        """Size of one token's keys and values in all layers."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or self.layout.num_heads
        width = getattr(config, "head_dim", None) or self.layout.head_width
        ranks = getattr(self.model, "tp_size", None) or 1
        return 2 * self.layout.num_layers * heads // ranks * width * self.dtype.itemsize
