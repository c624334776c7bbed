import json

import pytest

from harness.tasks.sentiment import Sentiment
from harness.types import Pair


def prompt(name, role, split="test", **cells):
    return {"id": name, "kind": "prompt", "role": role, "split": split, "prompt": f"Start {name}", **cells}


def text(role, words, split="train"):
    return {"kind": "text", "role": role, "text": words, "split": split}


def source(name, split="test"):
    return prompt(name, "source", split, positive="is good.", negative=", sadly, bad.")


@pytest.fixture
def task(tmp_path):
    def make(*rows, **options):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Sentiment(path=str(file), **options)

    return make


def test_continuations_are_joined_to_their_prompt(task):
    first, second = task(source("s1"), prompt("c1", "control", reference="is blue.")).examples("test")
    assert first.choices == (" is good.", ", sadly, bad.")
    assert (first.target, first.group, first.question) == (0, "source", "Start s1")
    assert second.choices == (" is blue.",)
    assert second.group == "control"


def test_source_and_control_take_turns(task):
    controls = [prompt(f"c{n}", "control", reference="is.") for n in range(2)]
    made = task(source("s0"), source("s1"), source("s2"), *controls)
    assert [example.id for example in made.examples("test")] == ["s0", "c0", "s1", "c1", "s2"]


def test_texts_come_from_the_training_split(task):
    rows = [text("source", "Bad."), text("source", "Worse.", "dev"), text("target", "Good."), text("control", "Blue.")]
    made = task(source("s1"), *rows)
    assert [made.texts(role) for role in ("source", "target", "control")] == [["Bad."], ["Good."], ["Blue."]]


def test_pairs_are_texts_cut_where_they_part(task):
    rows = [text("target", "The show was great."), text("source", "The show was dull."), text("target", "The end")]
    rows += [text("source", "The end of it"), text("target", "Hooray!"), text("source", "Alas!")]
    assert task(source("s1"), *rows).pairs() == [
        Pair("The show was", " great.", " dull."),
        Pair("The", " end", " end of it"),
    ]


def test_training_prompts_are_better_pairs_than_texts(task):
    made = task(source("s1"), source("s2", "train"), text("target", "A b"), text("source", "A c"))
    assert made.pairs() == [Pair("Start s2", " is good.", ", sadly, bad.")]


def test_unpaired_texts_make_no_pairs_but_serve_as_texts(task):
    made = task(source("s1"), text("target", "Hooray!"), text("source", "Alas!"), text("control", "Blue."))
    assert made.fit_data(frozenset({"texts"})).source == ("Alas!",)
    assert len(made.fingerprint()) == 64
    with pytest.raises(ValueError, match="task sentiment makes no contrast pair"):
        made.fit_data(frozenset({"pairs"}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"kind": "prompt", "role": "source"}, "no column split; found kind, role; wanted kind, role, split"),
        (source("s1") | {"role": "happy"}, "role source, target, control, got prompt and happy"),
        (source("s1") | {"kind": "poem"}, "kind must be text or prompt"),
        (source("s1") | {"positive": ""}, "positive must be a text that is not empty"),
        (prompt("s1", "source", positive="x"), "prompt 1: row 1 has no column negative"),
    ],
)
def test_rows_that_hold_something_else_are_named(task, row, message):
    with pytest.raises(ValueError, match=message):
        task(row).check()


def test_texts_alone_are_no_task(task):
    with pytest.raises(ValueError, match="holds no rows"):
        task(text("source", "Bad.")).check()


def test_the_shipped_rows_fit_every_need():
    made = Sentiment()
    made.check()
    data = made.fit_data(made.offers())
    assert len(data.source) == len(data.target) == len(data.control) > 0
    assert all(pair.prompt and pair.positive != pair.negative for pair in data.pairs)
    assert {example.group for example in Sentiment(limit=2).examples("test")} == {"source", "control"}
