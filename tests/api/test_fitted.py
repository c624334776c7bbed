"""Fitting, applying, saving and loading methods from Python."""

import json

import pytest
import torch
from steering_parts import PAIRS, QUESTIONS, generated

import harness


def test_steering_changes_texts_and_strength_zero_does_not(model, vector):
    plain = model.generate(QUESTIONS, max_new_tokens=12)
    assert model.generate(QUESTIONS, steer=vector.at(strength=0), max_new_tokens=12) == plain
    assert model.generate(QUESTIONS, steer=vector.at(layer=1, strength=4), max_new_tokens=12) != plain


def test_saved_and_read_it_steers_the_same(model, vector, tmp_path):
    steer = vector.at(layer=2, strength=3)
    again = harness.load_vector(steer.save(tmp_path / "v.safetensors"))
    assert again.parameters == steer.parameters
    texts = model.generate(QUESTIONS, steer=again, max_new_tokens=12)
    assert texts == model.generate(QUESTIONS, steer=steer, max_new_tokens=12)
    assert json.loads(again.bundle.note.model_dump_json())["model_identity"] == "tiny-llama-v1"


@pytest.mark.parametrize("tokens", ["all", "after_first", "predicting", "completion", "last_prompt"])
def test_a_plain_model_inside_applied_gives_the_engines_tokens(model, plain, tokens):
    vector = harness.fit("caa", model, pairs=PAIRS, tokens=tokens, extract="answer_mean")
    steer = vector.at(layer=1, strength=4)
    expected = model.generate(QUESTIONS, steer=steer, max_new_tokens=12)
    unsteered = generated(plain, model, QUESTIONS)
    with steer.applied(plain):
        assert generated(plain, model, QUESTIONS) == expected
        assert generated(plain, model, QUESTIONS[:1]) == expected[:1]
    assert generated(plain, model, QUESTIONS) == unsteered, "nothing stays behind"


def test_a_method_with_a_condition_works_on_a_plain_model_too(model, plain):
    steer = harness.fit("cast", model, task="sentiment task.train_size=8 task.limit=2").at()
    with steer.applied(plain):
        assert generated(plain, model, QUESTIONS) == model.generate(QUESTIONS, steer=steer, max_new_tokens=12)


def test_learning_methods_learn_from_pairs_too(model):
    fitted = harness.fit("linear_act", model, pairs=PAIRS)
    assert fitted.bundle.note.access == ("texts",)
    assert all(bool(torch.isfinite(value).all()) for value in fitted.artifact.values() if value.is_floating_point())


def test_pairs_may_be_a_file(model, vector, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    fitted = harness.fit("caa", model, pairs=path, tokens="all", extract="answer_mean")
    assert torch.equal(fitted.artifact["vector"], vector.artifact["vector"])


def test_a_task_may_give_what_is_learnt_from(model):
    fitted = harness.fit("caa", model, task="facts task.train_size=4 task.limit=2")
    assert fitted.bundle.note.task == "facts"


def test_a_method_that_learns_nothing_needs_no_data(model, tmp_path):
    unsteered = harness.fit("baseline", model)
    texts = model.generate(QUESTIONS, max_new_tokens=8)
    assert model.generate(QUESTIONS, steer=unsteered, max_new_tokens=8) == texts

    fitted = harness.fit("stars", model)
    assert not fitted.artifact
    fitted.save(tmp_path / "stars.safetensors")
    assert harness.load_vector(tmp_path / "stars.safetensors").bundle.note.label == "stars"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "caa learns from pairs=… or from task=…; give one of them"),
        ({"pairs": [], "task": "facts"}, "give one of them, not both"),
        ({"pairs": []}, "caa learns from pairs, and there are none"),
        ({"pairs": [{"prompt": "p", "positive": "x"}]}, "row 1 has no column negative"),
        ({"pairs": PAIRS, "layer": 99}, "layer must be a whole number from 0 to 3"),
        ({"pairs": PAIRS, "layr": 1}, "there is no option method.layr .did you mean method.layer[?]"),
    ],
)
def test_what_cannot_be_learnt_from_is_named(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        harness.fit("caa", model, **arguments)


def test_an_unknown_parameter_is_named(vector):
    with pytest.raises(ValueError, match=r"caa has no parameter 'strenth' \(it has layer, strength\)"):
        vector.at(strenth=1)


def test_a_method_that_looks_prompts_up_cannot_be_applied_to_a_plain_model(model, plain):
    fitted = harness.fit("segmented", model, pairs=PAIRS)
    with pytest.raises(ValueError, match="shown each question's answer"), fitted.applied(plain):
        pass


def test_another_models_vector_is_refused(vector):
    other = harness.load("tiny", family="gpt2", dtype="float64")
    narrow = vector.bundle.note.model_copy(update={"width": 32})
    odd = harness.Fitted(type(vector.bundle)(narrow, vector.artifact))
    with pytest.raises(ValueError, match=r"fitted on .* \(4 layers of width 32\); this model has 4 layers of width 64"):
        other.generate("x", steer=odd)
