"""Tasks made from the user's own data: pairs, and a concept in words."""

import json

import pytest

from harness.laws.lab import job_of
from harness.tasks.concept import Concept
from harness.tasks.pairs import Pairs
from harness.types import Pair

ROW = {"prompt": "Will it rain?", "positive": "Surely not!", "negative": "I fear so."}
TINY = ("model=tiny", "tracking=none")


@pytest.fixture
def file(tmp_path):
    """Writes rows as JSON Lines and returns the path."""

    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def test_a_test_row_is_answered_and_both_completions_are_compared(file):
    (item,) = Pairs(path=file({**ROW, "group": "weather", "id": "p1"})).examples("test")
    assert (item.id, item.question, item.group, item.target) == ("p1", "Will it rain?", "weather", 0)
    assert item.choices == ("Surely not!", "I fear so.")
    assert (item.answer, item.distractors) == ("Surely not!", ("I fear so.",))
    assert Pairs.kind == "both"


def test_training_rows_are_the_pairs(file):
    made = Pairs(path=file({**ROW, "split": "train", "group": "weather"}, {**ROW, "prompt": "And?", "split": "test"}))
    assert made.pairs() == [Pair("Will it rain?", "Surely not!", "I fear so.", "weather")]


def test_a_csv_without_splits_is_divided(tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("prompt,positive,negative\n" + "".join(f"Q{n}?,yes,no\n" for n in range(8)))
    made = Pairs(path=str(table), limit=4)
    assert [len(made.examples(split)) for split in ("test", "dev", "train")] == [4, 2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negative": "Surely not!"}, "row 1: positive and negative are the same: 'Surely not!'"),
        ({"positive": ""}, "row 1: positive must be a text that is not empty"),
        ({"prompt": None}, "row 1: prompt must be a text that is not empty"),
    ],
)
def test_rows_that_hold_something_else_are_named(file, change, message):
    with pytest.raises(ValueError, match=message):
        Pairs(path=file({**ROW, **change})).check()


def test_without_a_file_there_are_no_pairs():
    with pytest.raises(ValueError, match=r"task=pairs needs task\.path=FILE with columns prompt, positive, negative"):
        Pairs().check()
    with pytest.raises(ValueError, match=r"task\.path must name a file or a URL, got ''"):
        Pairs(path="").check()


@pytest.mark.parametrize("task", [Pairs, Concept])
@pytest.mark.parametrize("name", ["", "../up", "a b", "-x", "x" * 65])
def test_a_name_must_fit_into_a_folder(task, name):
    with pytest.raises(ValueError, match=r"task\.name must be letters, digits"):
        task(name=name).check()


def test_the_name_stands_in_tables(file):
    rows = [{**ROW, "prompt": f"Q{n}?"} for n in range(8)]
    job = job_of([*TINY, "task=pairs", f"task.path={file(*rows)}", "task.limit=2", "task.name=weather", "method=caa"])
    assert job.labels["task"] == job.task.name == "weather"
    assert len(job.task.pairs()) == 3


def test_a_concept_is_asked_for_in_every_prompt_and_seen_by_few():
    task = Concept(concept=" the sea and sailing ")
    task.check()
    for item in task.examples("test"):
        assert item.concept == item.answer == "the sea and sailing"
        assert "sea" not in item.question
        assert not {item.redacted().concept, item.redacted().answer} - {""}
    assert len(task.examples("test")) >= 20


def test_a_concept_makes_pairs_that_differ_in_it_alone():
    pairs = Concept(concept="the sea").pairs()
    for pair in pairs:
        before, after = pair.positive.split("the sea")
        assert pair.negative.startswith(before)
        assert pair.negative.endswith(after)
        assert "sea" not in pair.negative
    assert len({pair.positive for pair in pairs}) > 1
    assert len({pair.negative for pair in pairs}) > 5
    assert pairs == Concept(concept="the sea").pairs()
    assert pairs != Concept(concept="the sea", seed=1).pairs()


def test_prompts_of_your_own(file):
    made = Concept(concept="tea", path=file({"prompt": "Hm?", "split": "test"}, {"prompt": "So?", "split": "train"}))
    made.check()
    assert [item.question for item in made.examples("test")] == ["Hm?"]
    assert [pair.prompt for pair in made.pairs()] == ["So?"]


def test_a_concept_without_words_is_refused():
    with pytest.raises(ValueError, match=r"task\.concept must say in words what answers should speak of, got ' '"):
        Concept(concept=" ").check()


@pytest.mark.parametrize("method", ["caa", "actadd", "reft_r1"])
def test_methods_can_be_fitted_for_a_concept(method):
    job = job_of([*TINY, "task=concept", "task.concept='the sea'", f"method={method}"])
    assert list(job.scoring.evaluators) == ["token_overlap", "perplexity"]
