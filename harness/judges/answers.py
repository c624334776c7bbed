"""How likely a language model finds each of a few short answers as the next thing said."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_LEAD = "\nGrade:"  # for models without a chat template, which otherwise would go on with the prompt
_STRETCHED = frozenset({"dynamic", "longrope"})
"""Rotary positions that hang on a text's length: a beginning alone has other keys than within the whole text."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """What several prompts begin with, and the model's keys and values for it.

    Args:
        ids: the tokens.
        cache: filled with them, one row; not changed by reading on from it.
    """

    ids: Sequence[int]
    cache: DynamicCache

    def repeated(self, rows: int) -> DynamicCache:
        """A cache of its own with the prefix in each of so many rows."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]  # an update puts new tensors into a layer
        cache.batch_repeat_interleave(rows)
        return cache


class AnswerReader:
    """Reads next-token probabilities of single-token answers, many prompts at once.

    What all prompts begin with (the instructions of a rubric) can be computed once and shared: see `prefix`.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        chat: wrap each prompt as a user's message in the tokenizer's chat template.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat: bool) -> None:
        """Keep what is needed; nothing is computed yet."""
        self.model, self.tokenizer, self.chat = model, tokenizer, chat
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        """Each prompt as the model sees it."""
        if not self.chat:
            return [self.tokenizer(prompt + _LEAD)["input_ids"] for prompt in prompts]
        texts = [
            str(
                self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
                )
            )
            for prompt in prompts
        ]
        return [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    @torch.inference_mode()
    def prefix(self, tokens: Sequence[Sequence[int]], known: Prefix | None = None) -> Prefix | None:
        """What all prompts that fit into the context begin with, computed; at least one token is left to each.

        None for a single prompt, where nothing is shared, and for models whose prompts cannot be computed in two parts.

        Args:
            tokens: the prompts, from `tokens`.
            known: a beginning that was computed for other prompts. If these begin with it too, only what they share
                beyond it is computed, and a single prompt gets it as it is.
        """
        fitting = [ids for ids in tokens if self._fits(ids)]
        length = _shared_length(fitting)
        if known is not None and all(_begins(ids, known) for ids in fitting):
            if length <= len(known.ids):
                return known
            start, cache = len(known.ids), known.repeated(1)
        elif length and _in_parts(self.model.config):
            start, cache = 0, DynamicCache(config=self.model.config)
        else:
            return None

        ids = fitting[0][:length]
        ids_1P: Int[Tensor, "1 P"] = torch.tensor([ids[start:]], device=self.model.device)
        self.model(input_ids=ids_1P, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return Prefix(ids, cache)

    @torch.inference_mode()
    def read(
        self, tokens: Sequence[Sequence[int]], answers: Sequence[str], prefix: Prefix | None = None
    ) -> list[Mapping[str, float] | None]:
        """Log-probability (nats) of each answer, with or without a space before it; None for a prompt that is too long.

        Args:
            tokens: the prompts, from `tokens`.
            answers: what may come next.
            prefix: what all these prompts begin with, from `prefix`; None computes them whole.

        Raises:
            ValueError: two answers begin with the same token, so that one token cannot tell them apart; or a prompt
                does not begin with the prefix.
        """
        columns = self._columns(answers)
        fitting = [index for index, ids in enumerate(tokens) if self._fits(ids)]
        readings: list[Mapping[str, float] | None] = [None] * len(tokens)
        if not fitting:
            return readings
        logprobs_BV = self._next_token([tokens[index] for index in fitting], prefix)
        for index, row in zip(fitting, logprobs_BV, strict=True):
            readings[index] = {answer: row[ids].logsumexp(0).item() for answer, ids in columns.items()}
        return readings

    def _fits(self, ids: Sequence[int]) -> bool:
        return not self.context or len(ids) <= self.context

    def _columns(self, answers: Sequence[str]) -> dict[str, list[int]]:
        columns = {}
        for answer in answers:
            spelt = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (answer, f" {answer}")]
            columns[answer] = sorted({ids[-1] for ids in spelt})
        all_tokens = [token for ids in columns.values() for token in ids]
        if len(set(all_tokens)) < len(all_tokens):
            raise ValueError(f"the judge's tokenizer does not give {', '.join(answers)} tokens of their own")
        return columns

    def _next_token(self, tokens: Sequence[Sequence[int]], prefix: Prefix | None) -> Float[Tensor, "B V"]:
        """Padding stands on the right, where nothing attends to it: no mask, and sliding windows count real tokens.

        Positions go on from the prefix: the model counts them from its cache.
        """
        prompts = _without(prefix, tokens)
        device = self.model.device
        ids_BT = torch.zeros((len(prompts), max(map(len, prompts))), dtype=torch.long, device=device)
        for row, prompt in enumerate(prompts):
            ids_BT[row, : len(prompt)] = torch.tensor(prompt, device=device)
        lasts_B = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)

        # Rows end at different places: logits are computed wherever a row ends, and each row takes its own.
        ends_U, column_B = lasts_B.unique(return_inverse=True)
        cache = prefix.repeated(len(prompts)) if prefix else None
        logits_BUV = self.model(
            input_ids=ids_BT, past_key_values=cache, use_cache=cache is not None, logits_to_keep=ends_U
        ).logits

        rows_B = torch.arange(len(prompts), device=device)
        return logits_BUV[rows_B, column_B].float().log_softmax(-1)


def _shared_length(tokens: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with; 0 for a single row, and at least one token is left to every row."""
    if len(tokens) < 2:
        return 0
    shortest = min(map(len, tokens)) - 1
    first = tokens[0]
    return next((at for at in range(shortest) if any(ids[at] != first[at] for ids in tokens)), shortest)


def _begins(ids: Sequence[int], prefix: Prefix) -> bool:
    """Whether a prompt begins with a prefix and has a token left behind it."""
    length = len(prefix.ids)
    return len(ids) > length and list(ids[:length]) == list(prefix.ids)


def _without(prefix: Prefix | None, tokens: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    if prefix is None:
        return list(tokens)
    if not all(_begins(ids, prefix) for ids in tokens):
        raise ValueError("a prompt does not begin with the prefix that was computed for it")
    return [ids[len(prefix.ids) :] for ids in tokens]


def _in_parts(config: PretrainedConfig) -> bool:
    """Whether a text's beginning can be computed by itself: keys and values in every layer, and nothing recurrent."""
    layers = DynamicCache(config=config).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    return plain and not _STRETCHED & _rotary_types(config)


def _rotary_types(config: PretrainedConfig) -> set[str]:
    """The kinds of rotary positions in use; some models have one per kind of layer."""
    settings = getattr(config.get_text_config(), "rope_parameters", None) or {}
    by_kind = [value for value in settings.values() if isinstance(value, Mapping)] or [settings]
    return {str(one.get("rope_type", "default")) for one in by_kind}
