"""Attention for batches whose rows have lengths of their own and come and go.

transformers calls `attend` in every layer of a model that the harness holds. What a token may look at is said by a
`Plan`, made once per forward pass, instead of by a mask that every layer would have to be handed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Cache

if TYPE_CHECKING:
    from jaxtyping import Float, Int

IMPLEMENTATION = "harness_slots"

Visit = Callable[[Tensor], Tensor]
"""Makes of keys or values (B x T x D, heads side by side) what later tokens shall read; the same tensor: no change."""

Span = tuple[int, int, int]
"""Neighbouring rows that read their keys together: the first row, the one behind the last, and how many keys each."""

LONG = 1024
"""Stored tokens from which on rows of different lengths read their keys in several spans."""
MOST_SPANS = 8
WORTHWHILE = 0.8
"""Share of the keys that spans must not exceed to be worth their extra calls."""

_HARMLESS = frozenset({"position_ids", "cache_position", "past_key_values", "position_embeddings", "use_cache"})
"""Arguments that transformers hands to attention and that no result depends on here: positions are in the keys."""


@dataclass
class Plan:
    """How the tokens of one forward pass may look at each other.

    Args:
        lengths: decoding: the number of tokens each row holds, this one included. None: a pass over right-padded rows
            from position 0.
        at: positions of the queries and of all keys, for rows that go on from a shared prompt; a key at a position
            behind the query's is hidden.
        spans: decoding: which rows read how many of the stored keys; empty means all rows all of them.
        cache: where edited keys and values are stored in place of those that the pass has made; None: nowhere.
    """

    lengths: Int[Tensor, "B"] | None = None
    at: tuple[Int[Tensor, "B T"], Int[Tensor, "B W"]] | None = None
    spans: Sequence[Span] = ()
    cache: Cache | None = None
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def decode_mask(self, window: int, sliding: int | None, like: Tensor) -> Float[Tensor, "B 1 1 W"]:
        """0 where a stored position may be seen, minus infinity elsewhere; computed once per forward pass."""
        assert self.lengths is not None
        if (window, sliding) not in self._masks:
            stored = torch.arange(window, device=like.device)
            hidden = stored >= self.lengths[:, None]
            if sliding is not None:
                hidden |= stored < self.lengths[:, None] - sliding
            mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            self._masks[window, sliding] = mask.masked_fill_(hidden, float("-inf"))[:, None, None]
        return self._masks[window, sliding]

    def continued_mask(self, sliding: int | None, like: Tensor) -> Float[Tensor, "B 1 T W"]:
        """0 where a key's position is not behind the query's and not out of the sliding window."""
        assert self.at is not None
        if (0, sliding) not in self._masks:
            query, key = self.at[0][:, :, None], self.at[1][:, None, :]
            hidden = key > query
            if sliding is not None:
                hidden |= key <= query - sliding
            mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            self._masks[0, sliding] = mask.masked_fill_(hidden, float("-inf"))[:, None]
        return self._masks[0, sliding]

    def stored_mask(self, length: int, sliding: int | None, like: Tensor) -> Float[Tensor, "1 1 T 2T"]:
        """For keys as they were, followed by keys as they are stored.

        Each token sees its own of the former, and those of earlier tokens of the latter.
        """
        if (-length, sliding) not in self._masks:
            query, key = torch.arange(length, device=like.device)[:, None], torch.arange(length, device=like.device)
            earlier = key < query if sliding is None else (key < query) & (key > query - sliding)
            seen = torch.cat([key == query, earlier], 1)
            mask = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
            self._masks[-length, sliding] = mask.masked_fill_(~seen, float("-inf"))[None, None]
        return self._masks[-length, sliding]

    def prefill_mask(self, length: int, sliding: int, like: Tensor) -> Float[Tensor, "1 1 T T"]:
        """Causal and no further back than the sliding window."""
        if (length, sliding) not in self._masks:
            at = torch.arange(length, device=like.device)
            hidden = (at[None] > at[:, None]) | (at[None] <= at[:, None] - sliding)
            mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            self._masks[length, sliding] = mask.masked_fill_(hidden, float("-inf"))[None, None]
        return self._masks[length, sliding]


def spans_of(lengths: Sequence[int]) -> tuple[Span, ...]:
    """Spans in which rows read hardly more keys than they have; none where texts are short or alike.

    Args:
        lengths: how many tokens each row holds, in slot order.
    """
    longest = max(lengths, default=0)
    if longest < LONG:
        return ()
    size = -(-len(lengths) // MOST_SPANS)
    starts = range(0, len(lengths), size)
    spans = tuple((at, min(at + size, len(lengths)), max(lengths[at : at + size])) for at in starts)
    read = sum((stop - start) * window for start, stop, window in spans)
    return spans if read <= WORTHWHILE * longest * len(lengths) else ()


def attend(
    module: nn.Module,
    query: Float[Tensor, "B H T E"],
    key: Float[Tensor, "B K W E"],
    value: Float[Tensor, "B K W E"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    plan: Plan | None = None,
    visit_keys: Visit | None = None,
    visit_values: Visit | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "B T H E"], None]:
    """Attention as transformers calls it, masked by the plan instead of a mask tensor.

    ``visit_keys`` and ``visit_values`` see those of this pass's tokens; what they return is stored, for later tokens.

    Raises:
        ValueError: the architecture asks for something that is not computed here, or hands on no plan.
    """
    _refuse_unknown(module, attention_mask, plan, others)
    assert plan is not None
    stored = _stored(key, value, plan, visit_keys, visit_values)
    if plan.lengths is not None:
        out = _decode_attention(query, key, value, plan, scaling, softcap, sliding_window)
    elif stored is not None:
        mask = plan.stored_mask(query.shape[2], sliding_window, query)
        keys, values = torch.cat([key, stored[0]], 2), torch.cat([value, stored[1]], 2)
        out = _masked(query, keys, values, mask, scaling, softcap)
    elif plan.at is not None:
        out = _masked(query, key, value, plan.continued_mask(sliding_window, query), scaling, softcap)
    else:
        out = _masked(query, key, value, _causal_mask(query, plan, sliding_window, softcap), scaling, softcap)
    # Only now: while decoding, this token's own key is read from the place that the edited one goes to.
    if stored is not None and plan.cache is not None:
        plan.cache.update(*stored, module.layer_idx)  # pyright: ignore[reportArgumentType]
    return out.transpose(1, 2), None


def _stored(
    key: Float[Tensor, "B K W E"],
    value: Float[Tensor, "B K W E"],
    plan: Plan,
    visit_keys: Visit | None,
    visit_values: Visit | None,
) -> tuple[Float[Tensor, "B K T E"], Float[Tensor, "B K T E"]] | None:
    """This pass's keys and values as later tokens shall read them; None where nobody changes them."""
    if visit_keys is None and visit_values is None:
        return None
    if plan.lengths is not None:  # of all that is stored, the last token's are new
        row = torch.arange(len(key), device=key.device)
        key, value = key[row, :, plan.lengths - 1][:, :, None], value[row, :, plan.lengths - 1][:, :, None]
    new_key, new_value = _visited(key, visit_keys), _visited(value, visit_values)
    return None if new_key is key and new_value is value else (new_key, new_value)


def _visited(states: Float[Tensor, "B K T E"], visit: Visit | None) -> Float[Tensor, "B K T E"]:
    if visit is None:
        return states
    h = states.transpose(1, 2).flatten(2)
    new = visit(h)
    return states if new is h else new.unflatten(2, states.shape[1::2]).transpose(1, 2)


def _refuse_unknown(module: nn.Module, mask: Tensor | None, plan: Plan | None, others: Mapping[str, Any]) -> None:
    kind = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
    if plan is None:
        raise ValueError(
            f"attention of this {kind} model was called without the harness's plan: either the model was called "
            "directly (it is held by the harness; reload it for that), or its layers do not hand keyword arguments on "
            "to their attention, and the harness cannot run this architecture"
        )

    if mask is not None:
        raise ValueError(f"{kind} makes an attention mask of its own, which the harness does not compute with")
    if not getattr(module, "is_causal", True) or others.get("is_causal") is False:
        raise ValueError(f"{kind} has attention that looks ahead; the harness runs causal language models only")

    for name, value in others.items():
        asks_nothing = value is None or value is False or (name == "dropout" and value == 0) or name == "is_causal"
        if not asks_nothing and name not in _HARMLESS:
            raise ValueError(f"{kind} gives its attention '{name}', which the harness does not compute with")


def _causal_mask(query: Tensor, plan: Plan, sliding_window: int | None, softcap: float | None) -> Tensor | None:
    length = query.shape[2]
    if sliding_window is not None and length > sliding_window:
        return plan.prefill_mask(length, sliding_window, query)
    return plan.prefill_mask(length, length, query) if softcap else None


def _decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Plan,
    scaling: float | None,
    softcap: float | None,
    sliding_window: int | None,
) -> Float[Tensor, "B H 1 E"]:
    # The query heads that share a key head become query positions, so that keys are not repeated in memory.
    batch, heads, _, width = query.shape
    packed = query.reshape(batch, key.shape[1], heads // key.shape[1], width)

    mask = plan.decode_mask(key.shape[2], sliding_window, query)
    parts = [
        _masked(
            packed[first:stop],
            key[first:stop, :, :window],
            value[first:stop, :, :window],
            mask[first:stop, ..., :window],
            scaling,
            softcap,
        )
        for first, stop, window in plan.spans or ((0, batch, key.shape[2]),)
    ]

    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out.reshape(batch, heads, 1, width)


def _masked(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    if grouped and (softcap is not None or (mask is not None and query.device.type != "cpu")):
        # torch's kernels for accelerators that take a mask do not know grouped heads and would fall back to a slow way.
        groups = query.shape[1] // key.shape[1]
        key, value, grouped = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), False
    if softcap is None:
        causal = mask is None and query.shape[2] > 1
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=grouped
        )
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    scores = scores if mask is None else scores + mask
    return torch.softmax(scores, -1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype) @ value


AttentionInterface.register(IMPLEMENTATION, attend)
