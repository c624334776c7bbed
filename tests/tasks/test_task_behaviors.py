import json
from collections import Counter

import pytest

from harness.tasks.behaviors import Behaviors
from harness.types import Pair

OWN = {"id": "b1", "behavior": "haste", "question": "Wait?", "matching": "No, now.", "not_matching": "Yes, later."}
TESTED = {**OWN, "id": "b2", "question": "Hurry?", "split": "test"}
ANTHROPIC = {
    "question": "Question: Wait?\n\nChoices:\n (A) Yes, later.\n (B) No, now.\n\nAnswer:",
    "answer_matching_behavior": " (B)",
    "answer_not_matching_behavior": " (A)",
}
PAIRED = {
    "positive": "Wait?\n\nChoices:\n (A) Yes, later.\n (B) No, now.\n (B)",
    "negative": "Wait?\n\nChoices:\n (A) Yes, later.\n (B) No, now.\n (A)",
}
THREE = {
    "question": "Wait?\n\nChoices:\n(A) Yes, later.\n(B) Perhaps.\n(C) No, now.",
    "answer_matching_behavior": "(C)",
    "answer_not_matching_behavior": "(A)",
}


@pytest.fixture
def task(tmp_path):
    def make(*rows, **options):
        file = tmp_path / "haste.json"
        file.write_text(json.dumps(rows))
        return Behaviors(path=str(file), **options)

    return make


def test_the_prompt_lists_options_and_the_choices_are_letters(task):
    (example,) = task(OWN).examples("test")
    options = ["No, now.", "Yes, later."]
    if example.target == 1:
        options.reverse()
    listed = f"(A) {options[0]}\n(B) {options[1]}"
    assert example.question == f"Wait?\n\nOptions:\n{listed}\n\nReply with the letter of one option."
    assert example.choices == ("(A)", "(B)")
    assert (example.group, example.id) == ("haste", "b1")
    assert example.answer == example.choices[example.target]
    assert f"{example.answer} No, now." in example.question


@pytest.mark.parametrize("row", [ANTHROPIC, PAIRED])
def test_published_forms_make_the_same_prompt(task, row):
    (own,) = task(OWN).examples("test")
    (read,) = task(row).examples("test")
    assert (read.question, read.target, read.group) == (own.question, own.target, own.group)


def test_more_than_two_options_are_all_shown(task):
    (example,) = task(THREE).examples("test")
    assert example.choices == ("(A)", "(B)", "(C)")
    assert f"{example.answer} No, now." in example.question
    assert f"{example.distractors[0]} Yes, later." in example.question
    assert "Perhaps." in example.question


def test_both_orders_ask_twice_with_the_letters_swapped(task):
    first, second = task(OWN, both_orders=True).examples("test")
    assert {first.target, second.target} == {0, 1}
    assert second.id == "b1-reversed"


def test_pairs_hold_every_item_in_both_orders(task):
    pairs = task({**OWN, "split": "train"}, TESTED).pairs()
    assert Counter((pair.positive, pair.negative) for pair in pairs) == {("(A)", "(B)"): 1, ("(B)", "(A)"): 1}
    assert isinstance(pairs[0], Pair)
    assert {pair.group for pair in pairs} == {"haste"}


def test_a_question_that_is_learned_from_is_not_asked_again(task):
    reworded = {**OWN, "id": "b2", "question": "wait ...", "split": "test"}
    with pytest.raises(ValueError, match=r"row 1 \(train\) and row 2 \(test\) ask the same question, 'Wait\?'"):
        task({**OWN, "split": "train"}, reworded).examples("test")


def test_both_orders_of_a_question_are_one_unit(task):
    first, second = task(OWN, both_orders=True).examples("test")
    assert first.id != second.id
    assert first.unit == second.unit == "b1"


def test_texts_say_the_options_in_words(task):
    made = task({**OWN, "split": "train"}, TESTED)
    assert made.texts("target") == ["Wait?\nNo, now."]
    assert made.texts("source") == ["Wait?\nYes, later."]
    assert len(made.texts("control")) == 1


def test_option_orders_are_stable_and_near_balance():
    targets = [example.target for example in Behaviors().examples("test")]
    assert targets == [example.target for example in Behaviors().examples("test")]
    assert 0.3 < sum(targets) / len(targets) < 0.7
    assert targets != [example.target for example in Behaviors(seed=1).examples("test")]


def test_behaviours_take_turns_so_that_a_limit_keeps_all():
    behaviours = {example.group for example in Behaviors().examples("test")}
    few = Behaviors(limit=len(behaviours)).examples("test")
    assert {example.group for example in few} == behaviours


def test_one_behaviour_can_be_chosen():
    name = Behaviors().examples("test")[0].group
    made = Behaviors(behavior=name)
    assert {example.group for split in ("train", "dev", "test") for example in made.examples(split)} == {name}
    with pytest.raises(ValueError, match=rf"task\.behavior must be .*{name}.*, got none of these"):
        Behaviors(behavior="none of these").check()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ANTHROPIC, "question": "Wait?"}, r"row 1: the question must list its options as \(A\), \(B\)"),
        ({**ANTHROPIC, "question": "Wait?\n(A) Yes\n(C) No"}, "must list its options"),
        ({**ANTHROPIC, "answer_matching_behavior": "Yes"}, "must be the letter of an option.*'Yes'"),
        ({**ANTHROPIC, "answer_matching_behavior": "(D)"}, "must be the letter of an option.*'\\(D\\)'"),
        ({**OWN, "matching": "Yes, later."}, "two options are the same"),
        ({"question": "Wait?", "matching": "Yes"}, "has no column not_matching; found behavior, question, matching"),
    ],
)
def test_rows_that_hold_something_else_are_named(task, row, message):
    with pytest.raises(ValueError, match=message):
        task(row).check()


def test_the_shipped_items_fit_every_need():
    made = Behaviors()
    made.check()
    data = made.fit_data(made.offers())
    assert len(data.source) == len(data.target) >= len(data.control) > 0
    assert len(data.labelled) == 2 * len(data.pairs) > 0


@pytest.mark.parametrize("folder", ["anthropic_evals/human_generated_evals", "caa_behaviors"])
def test_real_files(shared, folder):
    files = sorted((shared / "data" / folder).glob("*.json*"))
    assert files
    for file in files:
        made = Behaviors(path=str(file), limit=20, dev_size=20, train_size=20)
        made.check()
        assert {example.group for example in made.examples("test")} == {file.stem}
        assert len(made.pairs()) == 40


def test_two_published_copies_of_one_behaviour_agree(shared):
    name = "coordinate-other-ais"
    one = Behaviors(path=str(shared / f"data/anthropic_evals/human_generated_evals/{name}.jsonl"), limit=50)
    two = Behaviors(path=str(shared / f"data/caa_behaviors/{name}.json"), limit=50)
    assert one.fingerprint() == two.fingerprint()
