"""A tiny model and a fitted vector, as somebody holds them who uses the harness from Python."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import harness

PAIRS = [
    {"prompt": f"What of {thing}?", "positive": f"{thing} is good", "negative": f"{thing} is bad"}
    for thing in ("rain", "tea", "snow", "bread")
]
QUESTIONS = ["How was the day?", "Say something about cats, and about dogs too."]


@pytest.fixture(scope="session")
def model() -> harness.Model:
    return harness.load("tiny", dtype="float64")


@pytest.fixture(scope="session")
def vector(model: harness.Model) -> harness.Fitted:
    return harness.fit("caa", model, pairs=PAIRS, tokens="all", extract="answer_mean")


@pytest.fixture
def plain(model: harness.Model) -> Any:
    """The same weights as transformers loads them."""
    return AutoModelForCausalLM.from_pretrained(model.resolved.weights(), dtype=torch.float64).eval()


@pytest.fixture(scope="session")
def tokenizer(model: harness.Model) -> Any:
    return AutoTokenizer.from_pretrained(model.resolved.weights(), padding_side="left")


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
