"""Sharing prompts between completions changes no log-likelihood, whatever the family's attention."""

from __future__ import annotations

import pytest
import torch

from harness.subject import passes
from harness.subject.decode import Tally
from harness.subject.load import ModelConfig, load_model
from harness.subject.passes import Text
from harness.subject.scorers import open_subject
from harness.subject.tiny import FAMILIES
from harness.types import Intervention

PROMPTS = [(5, 9, 13, 21, 8, 40, 41), (7, 7, 3), tuple(range(20, 60))]
COMPLETIONS = [(4,), (30, 31, 32, 33, 34, 35, 36, 37, 38), *(tuple(range(60 + i, 90)) for i in range(4))]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_shared_prompts_score_as_separate_ones(family: str) -> None:
    subject = open_subject(load_model(ModelConfig(kind="tiny", family=family, dtype="float64", chat_template=False)))
    texts = [Text(prompt, completion) for completion in COMPLETIONS for prompt in PROMPTS]
    with torch.no_grad():
        tally = Tally()
        shared = passes.loglikelihood(subject.network, texts, Intervention(), tally)
        alone = [passes.loglikelihood(subject.network, [text], Intervention(), Tally())[0] for text in texts]
    for one, other in zip(shared, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)
    assert tally.forward_tokens < sum(len(text.ids) for text in texts), "prompts were not shared"


def test_gradients_take_the_plain_way() -> None:
    subject = open_subject(load_model(ModelConfig(kind="tiny", family="llama", dtype="float64", chat_template=False)))
    texts = [Text(PROMPTS[0], completion) for completion in COMPLETIONS]
    with torch.enable_grad():
        tally = Tally()
        passes.loglikelihood(subject.network, texts, Intervention(), tally)
    assert tally.forward_tokens >= sum(len(text.ids) for text in texts)
