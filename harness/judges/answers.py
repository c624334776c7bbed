"""How likely a language model finds each of a few short answers as the next thing said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

_LEAD = "\nGrade:"  # for models without a chat template, which otherwise would go on with the prompt


class AnswerReader:
    """Reads next-token probabilities of single-token answers, many prompts at once.

    What all prompts of a batch begin with (the instructions of a rubric) is computed once and shared.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        chat: wrap each prompt as a user's message in the tokenizer's chat template.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat: bool) -> None:
        """Keep what is needed; nothing is computed yet."""
        self.model, self.tokenizer, self.chat = model, tokenizer, chat
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """Number of tokens of each prompt as the model sees it."""
        return [len(ids) for ids in self._tokens(prompts)]

    @torch.inference_mode()
    def read(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Mapping[str, float] | None]:
        """Log-probability (nats) of each answer, with or without a space before it; None for a prompt that is too long.

        Raises:
            ValueError: two answers begin with the same token, so that one token cannot tell them apart.
        """
        columns = self._columns(answers)
        tokens = self._tokens(prompts)
        fitting = [index for index, ids in enumerate(tokens) if not self.context or len(ids) <= self.context]
        found: list[Mapping[str, float] | None] = [None] * len(prompts)
        if not fitting:
            return found
        logprobs_BV = self._next_token([tokens[index] for index in fitting])
        for index, row in zip(fitting, logprobs_BV, strict=True):
            found[index] = {answer: row[ids].logsumexp(0).item() for answer, ids in columns.items()}
        return found

    def _tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        if not self.chat:
            return [self.tokenizer(prompt + _LEAD)["input_ids"] for prompt in prompts]
        texts = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]
        return [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def _columns(self, answers: Sequence[str]) -> dict[str, list[int]]:
        columns = {}
        for answer in answers:
            spelt = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (answer, f" {answer}")]
            columns[answer] = sorted({ids[-1] for ids in spelt})
        every = [token for ids in columns.values() for token in ids]
        if len(set(every)) < len(every):
            raise ValueError(f"the judge's tokenizer does not give {', '.join(answers)} tokens of their own")
        return columns

    def _next_token(self, tokens: Sequence[Sequence[int]]) -> Float[Tensor, "B V"]:
        """Padding stands on the right, where nothing attends to it: no mask, and sliding windows count real tokens."""
        shared = _shared_prefix(tokens)
        rests = [ids[shared:] for ids in tokens]
        device = self.model.device
        ids_BT = torch.zeros((len(rests), max(map(len, rests))), dtype=torch.long, device=device)
        for row, rest in enumerate(rests):
            ids_BT[row, : len(rest)] = torch.tensor(rest, device=device)
        lasts_B = torch.tensor([len(rest) - 1 for rest in rests], device=device)
        wanted_U, column_B = lasts_B.unique(return_inverse=True)
        cache = self._prefix_cache(tokens[0][:shared], len(rests)) if shared else None
        logits_BUV = self.model(
            input_ids=ids_BT, past_key_values=cache, use_cache=cache is not None, logits_to_keep=wanted_U
        ).logits
        rows_B = torch.arange(len(rests), device=device)
        return logits_BUV[rows_B, column_B].float().log_softmax(-1)

    def _prefix_cache(self, ids: Sequence[int], rows: int) -> DynamicCache:
        cache = DynamicCache(config=self.model.config)
        ids_1P: Int[Tensor, "1 P"] = torch.tensor([list(ids)], device=self.model.device)
        self.model(input_ids=ids_1P, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(rows)
        return cache


def _shared_prefix(tokens: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with; 0 for a single row, and at least one token is left to every row."""
    if len(tokens) < 2:
        return 0
    shortest = min(map(len, tokens)) - 1
    first = tokens[0]
    return next((at for at in range(shortest) if any(ids[at] != first[at] for ids in tokens)), shortest)
