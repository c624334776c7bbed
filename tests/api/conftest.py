"""A tiny model and a fitted vector, as somebody holds them who uses the harness from Python."""

from typing import Any

import pytest
import torch
from steering_parts import PAIRS
from transformers import AutoModelForCausalLM, AutoTokenizer

import harness


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
