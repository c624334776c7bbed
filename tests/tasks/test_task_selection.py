import pytest

from harness.tasks.selection import Numbered, by_column, divide, in_turn, order, parse_range


def numbered(*questions):
    return [Numbered(index, {"question": question}, question) for index, question in enumerate(questions)]


def questions(rows):
    return [item.question for item in rows]


TEN = numbered(*(f"question {number}" for number in range(10)))


@pytest.mark.parametrize(
    ("text", "expected"), [("2:5", slice(2, 5)), (":5", slice(None, 5)), ("7:", slice(7, None)), (" 0:1 ", slice(0, 1))]
)
def test_ranges(text, expected):
    assert parse_range(text) == expected


@pytest.mark.parametrize("text", ["5", "a:b", "-1:4", "1:2:3", "1.5:2", "", 90])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match=r'must look like "A:B"'):
        parse_range(text)


@pytest.mark.parametrize("text", ["3:3", "5:2", ":0"])
def test_an_empty_range_is_refused(text):
    with pytest.raises(ValueError, match="is empty"):
        parse_range(text)


def test_test_rows_keep_file_order_and_nothing_overlaps():
    split = divide(TEN, span=None, limit=4, sizes=(2, 3), seed=0)
    assert questions(split["test"]) == [f"question {number}" for number in range(4)]
    assert [len(split[name]) for name in ("dev", "train")] == [2, 3]
    indices = [item.index for rows in split.values() for item in rows]
    assert len(indices) == len(set(indices)) == 9


def test_the_limit_applies_within_the_range():
    split = divide(TEN, span="3:8", limit=2, sizes=(None, None), seed=0)
    assert questions(split["test"]) == ["question 3", "question 4"]
    assert len(split["dev"]) == 4
    assert len(split["train"]) == 4


def test_other_rows_are_ordered_by_the_hash_of_their_question():
    split = divide(TEN, span=None, limit=4, sizes=(2, None), seed=0)
    expected = sorted((f"question {number}" for number in range(4, 10)), key=lambda text: order(text, 0))
    assert questions(split["dev"] + split["train"]) == expected


def test_the_order_of_a_known_text():
    # printf '0\nquestion 4' | sha256sum
    assert order("question 4", 0) == "d580703288b84d7b9f680dc3437caf61a751816e88875e0110e85ddfcbe4150c"


def test_the_seed_changes_who_is_in_dev_but_not_the_test():
    splits = [divide(TEN, span=None, limit=2, sizes=(4, 4), seed=seed) for seed in range(5)]
    assert len({tuple(questions(split["test"])) for split in splits}) == 1
    assert len({frozenset(questions(split["dev"])) for split in splits}) > 1


def test_a_question_that_is_asked_is_never_learned_from():
    rows = numbered("Who?", "what?", " who? ", "What?", "WHAT? ", "why?")
    split = divide(rows, span=None, limit=1, sizes=(1, None), seed=0)
    kept = [question.strip().lower() for question in questions(split["dev"] + split["train"])]
    assert "who?" not in kept
    assert not {item.same for item in split["dev"]} & {item.same for item in split["train"]}


def test_without_a_limit_all_rows_are_test_rows():
    split = divide(TEN, span=None, limit=None, sizes=(2, 2), seed=0)
    assert [len(split[name]) for name in ("test", "dev", "train")] == [10, 0, 0]


def test_rows_that_name_their_split_keep_it():
    names = ["train", "test", "dev", "test", "train", "test"]
    rows = [Numbered(index, {"split": name}, str(index)) for index, name in enumerate(names)]
    split = by_column(rows, span="1:", limit=1, sizes=(None, 1), origin="f")
    assert {name: questions(rows) for name, rows in split.items()} == {"test": ["3"], "dev": ["2"], "train": ["0"]}


def test_an_unknown_split_is_named():
    rows = [Numbered(0, {"split": "validation"}, "?")]
    with pytest.raises(ValueError, match="row 1: split must be train, dev, test, got 'validation'"):
        by_column(rows, span=None, limit=None, sizes=(None, None), origin="f")


def test_rows_are_dealt_in_turn_within_their_split():
    rows = [{"split": s, "role": r, "n": n} for n, (s, r) in enumerate(["da", "da", "ta", "ta", "db", "tb", "ta"])]
    assert [row["n"] for row in in_turn(rows, "role")] == [0, 4, 1, 2, 5, 3, 6]
