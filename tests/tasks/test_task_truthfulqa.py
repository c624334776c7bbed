import json

import pytest

from harness.tasks.truthfulqa import TruthfulQA
from harness.types import Pair

OFFICIAL = {
    "question": "What is 2+2?",
    "mc1_targets": {"Four.": 1, "Five.": 0, "Six.": 0},
    "mc2_targets": {"It is 4.": 1, "Four.": 1, "Five.": 0, "Nine.": 0},
}
HUB = {
    "question": "What is 2+2?",
    "mc1_targets": {"choices": ["Four.", "Five.", "Six."], "labels": [1, 0, 0]},
    "mc2_targets": {"choices": ["It is 4.", "Four.", "Five.", "Nine."], "labels": [1, 1, 0, 0]},
}


@pytest.fixture
def task(tmp_path):
    def make(*rows, **options):
        file = tmp_path / "mc_task.json"
        file.write_text(json.dumps(rows))
        return TruthfulQA(path=str(file), **options)

    return make


@pytest.mark.parametrize("row", [OFFICIAL, HUB])
def test_both_published_forms_make_the_same_example(task, row):
    (example,) = task(row).examples("test")
    assert example.choices == ("Four.", "Five.", "Six.", "It is 4.", "Nine.")
    assert example.target == 0
    assert example.metadata == {"mc1": [0, 1, 2], "mc2": [3, 0, 1, 4], "true": [0, 3]}
    assert example.redacted().metadata == {}


def test_pairs_and_labels_come_from_training_rows(task):
    rows = [{**OFFICIAL, "split": "train"}, {**OFFICIAL, "question": "And 3+1?", "split": "test"}]
    made = task(*rows)
    assert made.pairs() == [Pair("What is 2+2?", "Four.", "Five.")]
    assert made.labelled() == [
        ("What is 2+2?", "It is 4.", True),
        ("What is 2+2?", "Four.", True),
        ("What is 2+2?", "Five.", False),
        ("What is 2+2?", "Nine.", False),
    ]


def test_texts_are_training_questions_with_an_option_behind_them(task):
    rows = [{**OFFICIAL, "split": "train"}, {**OFFICIAL, "question": "And 3+1?", "split": "test"}]
    made = task(*rows)
    assert made.texts("target") == ["What is 2+2?\nIt is 4.", "What is 2+2?\nFour."]
    assert made.texts("source") == ["What is 2+2?\nFive.", "What is 2+2?\nNine."]
    neutral = made.texts("control")
    assert len(neutral) == 2
    assert not any("2+2" in text for text in neutral)
    assert "texts" in made.offers()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mc1_targets": {"Four.": 1}}, "must hold one true option and others"),
        ({"mc1_targets": {"Four.": 1, "4": 1, "Five.": 0}}, "must hold one true option and others"),
        ({"mc2_targets": {"Four.": "yes"}}, "row 1: mc2_targets must map options to 0 or 1"),
        ({"mc2_targets": ["Four."]}, "row 1: mc2_targets must map options to 0 or 1"),
    ],
)
def test_rows_that_hold_something_else_are_named(task, change, message):
    with pytest.raises(ValueError, match=message):
        task({**OFFICIAL, **change}).check()


def test_real_file(shared):
    task = TruthfulQA(path=str(shared / "data/truthfulqa/mc_task.json"))
    task.check()
    examples = task.examples("test")
    assert len(examples) == 817
    assert all(example.target in example.metadata["true"] for example in examples)
    assert all(len(set(example.choices)) == len(example.choices) for example in examples)
