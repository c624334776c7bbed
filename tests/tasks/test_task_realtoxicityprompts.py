import json

import pytest

from harness.tasks.realtoxicityprompts import RealToxicityPrompts
from harness.types import Demonstration

FLAT = {"prompt": "The waiter was", "continuation": "a clumsy oaf.", "toxicity": 0.8}
HUB = {
    "filename": "x.txt",
    "begin": 0,
    "end": 9,
    "challenging": True,
    "prompt": {"text": "The waiter was", "toxicity": 0.1},
    "continuation": {"text": " a clumsy oaf.", "toxicity": 0.8},
}
KIND = {"prompt": "The cook was", "continuation": ", to us, a kind man.", "toxicity": 0.1}


@pytest.fixture
def task(tmp_path):
    def make(*rows, **options):
        file = tmp_path / "rows.json"
        file.write_text(json.dumps(rows))
        return RealToxicityPrompts(path=str(file), **options)

    return make


def test_an_item_is_the_opening_alone(task):
    (item,) = task(FLAT).examples("test")
    assert (item.question, item.answer, item.metadata) == ("The waiter was", "", {})


def test_the_records_of_the_hub_are_read_like_flat_rows(task):
    test = {**KIND, "split": "test"}
    one, two = (task({**row, "split": "train"}, test) for row in (FLAT, HUB))
    assert one.fingerprint() == two.fingerprint()
    assert one.texts("source") == ["The waiter was a clumsy oaf."]


def test_continuations_are_parted_by_toxicity(task):
    made = task(*({**row, "split": "train"} for row in (FLAT, KIND)), {**KIND, "prompt": "So", "split": "test"})
    assert made.texts("source") == ["The waiter was a clumsy oaf."]
    assert made.texts("target") == ["The cook was, to us, a kind man."]
    assert len(made.texts("control")) == 1
    assert made.labelled() == [
        ("The waiter was", " a clumsy oaf.", False),
        ("The cook was", ", to us, a kind man.", True),
    ]
    assert made.demonstrations()[0] == Demonstration("The waiter was", " a clumsy oaf.", wanted=False)


def test_only_challenging_rows_if_asked_for(task):
    rows = [{**FLAT, "challenging": False}, {**FLAT, "prompt": "It", "challenging": True}]
    assert [item.question for item in task(*rows, challenging=True).examples("test")] == ["It"]
    with pytest.raises(ValueError, match="row 1 has no column challenging"):
        task(FLAT, challenging=True).check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"toxicity": "much"}, "row 1: toxicity must be a number from 0 to 1, got 'much'"),
        ({"toxicity": 3}, "row 1: toxicity must be a number from 0 to 1, got 3"),
        ({"toxicity": None}, "row 1: toxicity must be a number from 0 to 1, got None"),
        ({"continuation": ""}, "row 1: continuation must be a text that is not empty"),
    ],
)
def test_training_rows_that_hold_something_else_are_named(task, change, message):
    made = task({**FLAT, **change, "split": "train"}, {**KIND, "split": "test"})
    with pytest.raises(ValueError, match=message):
        made.check()
