"""Loading models and completing prompts."""

import copy

import pytest
import torch
from steering_parts import PAIRS, QUESTIONS, generated

import harness


def test_one_prompt_gives_a_text_and_several_give_a_list(model):
    several = model.generate(QUESTIONS, max_new_tokens=8)
    assert several == [model.generate(question, max_new_tokens=8) for question in QUESTIONS]


def test_tokens_are_those_of_transformers(model, plain):
    assert model.generate(QUESTIONS, max_new_tokens=12) == generated(plain, model, QUESTIONS)


def test_a_model_in_hand_is_left_as_it_was(model, plain, tokenizer):
    weights = copy.deepcopy(plain.state_dict())
    before = generated(plain, model, QUESTIONS)
    taken = harness.load(plain, tokenizer=tokenizer, chat_template=True)
    assert taken.generate(QUESTIONS, max_new_tokens=12) == model.generate(QUESTIONS, max_new_tokens=12)
    harness.fit("caa", taken, pairs=[("a", "b", "c"), ("d", "e", "f")])
    assert generated(plain, model, QUESTIONS) == before
    assert all(torch.equal(weight, weights[name]) for name, weight in plain.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in plain.parameters())


def test_a_model_in_hand_is_named_by_its_weights(plain, tokenizer):
    first = harness.load(plain, tokenizer=tokenizer).resolved.identity
    with torch.no_grad():
        plain.lm_head.weight[0, 0] += 1
    assert harness.load(plain, tokenizer=tokenizer).resolved.identity != first


def test_weights_that_changed_since_are_read_anew(plain, tokenizer):
    """In float64 weights are shared and not reordered, so that training the model at hand is seen here."""
    taken = harness.load(plain, tokenizer=tokenizer, chat_template=True)
    fitted = harness.fit("caa", taken, pairs=PAIRS)
    written = taken.generate(QUESTIONS, max_new_tokens=8)
    with torch.no_grad():
        for weight in plain.parameters():
            weight.mul_(1.1)
    again = harness.fit("caa", taken, pairs=PAIRS)
    assert any(not torch.equal(value, again.artifact[name]) for name, value in fitted.artifact.items())
    assert taken.generate(QUESTIONS, max_new_tokens=8) == generated(plain, taken, QUESTIONS, 8) != written


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smolm2", "there is no model 'smolm2': give one of .*smollm2"),
        (3, "must be a name, a path or a transformers model, got int"),
    ],
)
def test_what_is_no_model_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        harness.load(name)


def test_a_wrong_setting_names_itself():
    with pytest.raises(ValueError, match=r"model\.dtype must be one of float32"):
        harness.load("tiny", dtype="float31")


def test_nothing_is_imported_before_a_verb_is_used():
    assert set(harness.__all__) >= {"load", "fit", "compare"}
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = harness.lod
