import json
import re

import pytest

from harness.tasks.side_effects import SideEffects


def test_kinds_take_turns_and_questions_have_golds():
    items = SideEffects().examples("test")
    assert [item.group for item in items[:8]] == ["general", "arithmetic", "harmless", "neutral"] * 2
    assert len(items) == len({item.question for item in items}) == 48
    assert all(bool(item.answer) == (item.group in ("general", "arithmetic")) for item in items)


def test_the_sums_are_right():
    for item in SideEffects().examples("test"):
        if sum_ := re.fullmatch(r"What is (\d+) ([-+x/]) (\d+)\?", item.question):
            left, sign, right = int(sum_[1]), sum_[2], int(sum_[3])
            assert {"+": left + right, "-": left - right, "x": left * right, "/": left / right}[sign] == int(
                item.answer
            )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "x", "kind": "odd"}, "row 1: kind must be general, arithmetic, harmless, neutral, got 'odd'"),
        ({"question": "x", "kind": "general"}, "has no column answer"),
    ],
)
def test_rows_that_hold_something_else_are_named(tmp_path, row, message):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=message):
        SideEffects(path=str(file)).check()


def test_nothing_is_learned_here():
    with pytest.raises(ValueError, match="task side_effects offers nothing to fit on; the method needs pairs"):
        SideEffects().fit_data(frozenset({"pairs"}))
