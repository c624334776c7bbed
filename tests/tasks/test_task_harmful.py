import json

import pytest

from harness.tasks import harmful
from harness.tasks.harmful import Harmful
from harness.tasks.rows import HubData
from harness.types import Pair

BAD = {"prompt": "Break in?", "kind": "harmful", "answer": "Sure, first", "refusal": "I will not."}
GOOD = {"prompt": "Bake bread?", "kind": "harmless", "answer": "Take flour"}


@pytest.fixture
def task(tmp_path):
    def make(*rows, **options):
        file = tmp_path / "rows.json"
        file.write_text(json.dumps(rows))
        return Harmful(path=str(file), **options)

    return make


def test_kinds_take_turns_so_that_a_limit_keeps_both():
    groups = [item.group for item in Harmful(sample=True, limit=4).examples("test")]
    assert groups == ["harmful", "harmless"] * 2


def test_an_item_shows_the_request_alone(task):
    (item, _) = task(BAD, GOOD).examples("test")
    assert (item.question, item.group, item.answer) == ("Break in?", "harmful", "")
    assert "Sure" not in str(item.redacted())


def test_pairs_refuse_harmful_requests_and_texts_say_both(task):
    rows = [{**row, "split": "train"} for row in (BAD, GOOD, {"prompt": "Steal?", "kind": "harmful"})]
    made = task(*rows, {**GOOD, "prompt": "Sing?", "split": "test"})
    assert made.pairs() == [Pair("Break in?", "I will not.", "Sure, first")], "without an answer there is no pair"
    assert made.texts("source") == ["Break in?\nSure, first"]
    assert made.texts("target") == ["Break in?\nI will not."]
    assert made.texts("control") == ["Bake bread?\nTake flour"]


def test_refusals_of_our_own_stand_in_and_stay_the_same(task):
    row = {key: value for key, value in BAD.items() if key != "refusal"}
    first, again = (task({**row, "split": "train"}, {**GOOD, "split": "test"}).pairs()[0].positive for _ in "ab")
    assert first == again
    assert first in harmful._REFUSALS


def test_both_splits_of_the_hub_are_read(monkeypatch):
    asked = []

    def rows(data: HubData, columns):
        asked.append(str(data))
        return [{"Index": 0, "Goal": f"{data.split} goal", "Target": f"{data.split} target"}]

    monkeypatch.setattr(harmful, "hub_rows", rows)
    one, two = Harmful().examples("test")
    assert asked == [
        "JailbreakBench/JBB-Behaviors (split harmful)",
        "JailbreakBench/JBB-Behaviors (split benign)",
    ]
    assert (one.question, one.group, one.metadata["answer"]) == ("harmful goal", "harmful", "harmful target")
    assert (two.question, two.group) == ("benign goal", "harmless")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**BAD, "kind": "evil"}, "row 1: kind must be harmful or harmless, got 'evil'"),
        ({**BAD, "prompt": " "}, "row 1: prompt must be a text that is not empty"),
        ({**BAD, "refusal": 3}, "row 1: refusal must be a text"),
        ({"prompt": "x"}, "row 1 has no column kind"),
    ],
)
def test_rows_that_hold_something_else_are_named(task, row, message):
    with pytest.raises(ValueError, match=message):
        task(row).check()
