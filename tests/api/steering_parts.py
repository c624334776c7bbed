"""Prompts, pairs, and completions by transformers' own generate."""

from typing import Any

import torch

import harness

PAIRS = [
    {"prompt": f"What of {word}?", "positive": f"{word} is good", "negative": f"{word} is bad"}
    for word in ("rain", "tea", "snow", "bread")
]
QUESTIONS = ["How was the day?", "Say something about cats, and about dogs too."]


def generated(plain: Any, model: harness.Model, prompts: list[str], length: int = 12) -> list[str]:
    """Completions by transformers' own ``generate``, prompts padded on the left."""
    rows = [model.subject.encode(model.subject.render(prompt)) for prompt in prompts]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])

    with torch.no_grad():
        out = plain.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=length,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=sorted(model.subject.network.stop_ids),
        )

    completions = []
    for row in out[:, longest:].tolist():
        ends = [place for place, token in enumerate(row) if token in model.subject.network.stop_ids]
        completions.append(model.subject.decode_text(row[: ends[0] + 1] if ends else row))
    return completions
