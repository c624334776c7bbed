import dataclasses
import json

import pytest

from harness.tasks.facts import Facts
from harness.tasks.questions import answer_type
from harness.tasks.simpleqa import SimpleQA
from harness.tasks.simpleqa_verified import SimpleQAVerified
from harness.tasks.task import Task
from harness.tasks.triviaqa import TriviaQA
from harness.types import Example, FitData, Pair

FACT = {"id": "f1", "question": "What is the sea called?", "answer": "Baltic", "aliases": ["the Baltic", "Baltic"]}


@pytest.fixture
def lines(tmp_path):
    """Writes rows as JSON Lines and returns the path."""

    def write(*rows):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return write


def test_a_fact_becomes_an_example(lines):
    row = {**FACT, "distractors": ["Black", "Red"], "topic": "geography", "answer_type": "Place", "split": "test"}
    (example,) = Facts(path=lines(row)).examples("test")
    assert example == Example(
        id="f1",
        question="What is the sea called?",
        answer="Baltic",
        aliases=("the Baltic",),
        distractors=("Black", "Red"),
        metadata={"topic": "geography", "answer_type": "Place"},
    )


def test_facts_ship_with_pairs_from_their_training_split_alone():
    facts = Facts()
    facts.check()
    train = {example.question for example in facts.examples("train")}
    asked = {example.question for split in ("dev", "test") for example in facts.examples(split)}
    assert {pair.prompt for pair in facts.pairs()} == train
    assert not train & asked
    assert all(pair.positive != pair.negative for pair in facts.pairs())


def test_limit_and_range_choose_test_rows_in_file_order():
    examples = Facts().examples("test")
    assert Facts(limit=3).examples("test") == examples[:3]
    assert Facts(rows="10:20", limit=2).examples("test") == examples[10:12]
    assert Facts(rows="10:20", limit=2).examples("train") == Facts().examples("train")


def test_sizes_limit_what_is_learned_from():
    assert len(Facts(dev_size=5).examples("dev")) == 5
    assert len(Facts(train_size=7).pairs()) == 7


def test_pairs_borrow_the_gold_of_the_nearest_item_of_the_same_type(lines):
    rows = [
        {"question": "When?", "answer": "5 May 1821", "answer_type": "Date", "split": "train"},
        {"question": "Which year?", "answer": "1815", "answer_type": "Date", "split": "train"},
        {"question": "What day?", "answer": "18 June 1815", "answer_type": "Date", "split": "train"},
        {"question": "Who?", "answer": "Ney", "answer_type": "Person", "split": "train"},
        {"question": "Whose day?", "answer": "1 May 1700", "answer_type": "Date", "split": "test"},
    ]
    # The only other three-word date for each of the days; "1815" is part of "18 June 1815", so the year takes the other
    # day; nobody else is a person, so the last training item makes no pair.
    assert Facts(path=lines(*rows)).pairs() == [
        Pair("When?", "5 May 1821", "18 June 1815"),
        Pair("Which year?", "1815", "5 May 1821"),
        Pair("What day?", "18 June 1815", "5 May 1821"),
    ]


@pytest.mark.parametrize(
    ("answer", "metadata", "expected"),
    [
        ("Ada", {"answer_type": "Person"}, "Person"),
        ("1984", {}, "number"),
        ("Ada", {}, "word"),
        ("Ada L", {}, "phrase"),
    ],
)
def test_answer_types(answer, metadata, expected):
    assert answer_type(Example("1", "?", answer, metadata=metadata)) == expected


def test_both_sides_of_a_pair_are_labelled(lines):
    row = {**FACT, "distractors": ["Red", "Black"], "split": "train"}
    question = FACT["question"]
    assert Facts(path=lines(row)).labelled() == [(question, "Baltic", True), (question, "Red", False)]


def test_fit_data_holds_what_is_required_and_nothing_else():
    facts = Facts(train_size=3)
    assert facts.fit_data(frozenset()) == FitData()
    assert facts.fit_data(frozenset({"pairs"})) == FitData(pairs=tuple(facts.pairs()))
    with pytest.raises(ValueError, match="task facts offers demonstrations, labelled, pairs; the method needs texts"):
        facts.fit_data(frozenset({"pairs", "texts"}))


def test_both_sides_of_a_pair_are_demonstrations():
    task = Facts(train_size=3)
    data = task.fit_data(frozenset({"demonstrations"}))
    assert data.pairs == ()
    assert [(d.prompt, d.completion, d.wanted, d.group) for d in data.demonstrations] == [
        (pair.prompt, completion, is_wanted, pair.group)
        for pair in task.pairs()
        for completion, is_wanted in ((pair.positive, True), (pair.negative, False))
    ]


def test_no_training_rows_left_says_what_to_set(lines):
    task = Facts(path=lines(FACT))
    task.check()
    with pytest.raises(ValueError, match=r"task facts has no train rows in .*set task\.limit=N or task\.rows=A:B"):
        task.fit_data(frozenset({"pairs"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, r"task\.limit must be a whole number from 1 on or null, got 0"),
        ({"limit": "ten"}, r"task\.limit must be a whole number .*got 'ten'"),
        ({"limit": 2.5}, r"task\.limit must be"),
        ({"max_new_tokens": None}, r"task\.max_new_tokens must be a whole number from 1 on, got None"),
        ({"dev_size": -1}, r"task\.dev_size must be a whole number from 0 on"),
        ({"train_size": True}, r"task\.train_size must be"),
        ({"seed": -1}, r"task\.seed must be"),
        ({"rows": "x"}, r'task\.rows must look like "A:B"'),
        ({"rows": "9999:"}, r"task facts has no test rows in facts with rows=9999:"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        Facts(**options).check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": " "}, r"row 1: answer must be a text that is not empty, got ' '"),
        ({"answer": 1984}, r"row 1: answer must be a text that is not empty, got 1984"),
        ({"aliases": "Baltic"}, r"row 1: aliases must be a list of texts, got 'Baltic'"),
    ],
)
def test_cells_that_hold_something_else_are_named(lines, change, message):
    with pytest.raises(ValueError, match=message):
        Facts(path=lines({**FACT, **change})).check()


def test_an_id_twice_an_empty_file_and_missing_columns_are_named(lines):
    with pytest.raises(ValueError, match="the id f1 stands more than once"):
        Facts(path=lines(FACT, {**FACT, "question": "Which one?"})).check()
    with pytest.raises(ValueError, match="holds no rows"):
        Facts(path=lines()).check()
    with pytest.raises(ValueError, match="has no column question, answer; found q, a; wanted question, answer"):
        Facts(path=lines({"q": "?", "a": "!"})).check()


def test_the_fingerprint_follows_content_and_not_where_it_lies(lines, tmp_path):
    rows = [{**FACT, "id": f"f{number}", "question": f"Q{number}?"} for number in range(6)]
    first = Facts(path=lines(*rows), limit=2)
    other = tmp_path / "copy.jsonl"
    other.write_bytes((tmp_path / "rows.jsonl").read_bytes())
    assert Facts(path=str(other), limit=2).fingerprint() == first.fingerprint()
    assert Facts(path=str(other), limit=3).fingerprint(["test"]) != first.fingerprint(["test"])
    assert Facts(path=str(other), limit=2, train_size=1).fingerprint(["test"]) == first.fingerprint(["test"])
    assert Facts(path=str(other), limit=2, train_size=1).fingerprint() != first.fingerprint()


def test_simpleqa_reads_the_official_columns(tmp_path):
    file = tmp_path / "simpleqa.csv"
    meta = "{'topic': 'Art', 'answer_type': 'Person', 'urls': ['https://a.org']}"
    file.write_text(f'metadata,problem,answer\n"{meta}",Who painted it?,Frida Kahlo\n')
    (example,) = SimpleQA(path=str(file)).examples("test")
    assert (example.question, example.answer, example.id) == ("Who painted it?", "Frida Kahlo", "simpleqa-0000")
    assert example.metadata == {"topic": "Art", "answer_type": "Person", "urls": ["https://a.org"]}


@pytest.mark.parametrize("cell", ["not python(", "[1]", "__import__('os')"])
def test_simpleqa_metadata_is_a_literal_and_never_run(tmp_path, cell):
    file = tmp_path / "simpleqa.csv"
    file.write_text(f'metadata,problem,answer\n"{cell}",Who?,Ada\n')
    with pytest.raises(ValueError, match="row 1: metadata must be a Python dict"):
        SimpleQA(path=str(file)).check()


def test_simpleqa_names_wrong_columns(tmp_path):
    file = tmp_path / "simpleqa.csv"
    file.write_text("question,answer\nWho?,Ada\n")
    message = r"no column metadata, problem; found question, answer; wanted metadata, problem, answer"
    with pytest.raises(ValueError, match=message):
        SimpleQA(path=str(file)).check()


def test_an_acceptable_range_stays_in_the_gold_and_becomes_metadata_and_alias(tmp_path):
    file = tmp_path / "verified.csv"
    file.write_text(
        "original_index,problem,answer,topic,answer_type\n"
        '7,How long?,"1,390 metres (acceptable range: anything between 1,386 and 1,394 metres)",Art,Number\n'
        "8,Who (roughly)?,Ada (or Augusta),Art,Person\n",
    )

    ranged, plain = SimpleQAVerified(path=str(file)).examples("test")
    assert ranged.answer == "1,390 metres (acceptable range: anything between 1,386 and 1,394 metres)"
    assert ranged.aliases == ("1,390 metres",)
    assert ranged.metadata["acceptable_range"] == "anything between 1,386 and 1,394 metres"
    assert ranged.metadata["original_index"] == "7"
    assert plain.answer == "Ada (or Augusta)"
    assert plain.aliases == ()


def test_triviaqa_reads_files_and_the_hub_form_alike(lines):
    flat = {"question": "Who?", "answer": "Ada", "aliases": ["Ada", "Lovelace", "Lovelace", " "]}
    nested = {"question": "Who?", "answer": {"value": "Ada", "aliases": ["Ada", "Lovelace"]}, "question_id": "tc_1"}
    (one,) = TriviaQA(path=lines(flat)).examples("test")
    (two,) = TriviaQA(path=lines(nested)).examples("test")
    assert one.aliases == two.aliases == ("Lovelace",)
    assert (one.id, two.id) == ("triviaqa-00000", "tc_1")


def test_the_hub_is_read_when_no_file_is_given(tmp_path):
    rows = [
        {"question": f"Q{n}?", "answer": {"value": f"A{n}", "aliases": []}, "question_id": f"t{n}"} for n in range(4)
    ]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TriviaQA(hub=str(tmp_path), hub_config=None, limit=2)
    assert [example.id for example in task.examples("test")] == ["t0", "t1"]


def test_real_simpleqa(shared):
    task = SimpleQA(path=str(shared / "data/simpleqa/simple_qa_test_set.csv"), limit=500, dev_size=50, train_size=100)
    task.check()
    test = task.examples("test")
    assert len(test) == 500
    assert test[0].answer == "Michio Sugeno"
    assert len(task.pairs()) == 100
    assert not {e.question for e in test} & {e.question for s in ("dev", "train") for e in task.examples(s)}
    assert {e.metadata["answer_type"] for e in test} == {"Date", "Person", "Number", "Place", "Other"}


def test_real_simpleqa_verified(shared):
    task = SimpleQAVerified(path=str(shared / "data/simpleqa_verified/simpleqa_verified.csv"))
    examples = task.examples("test")
    assert len(examples) == 1000
    ranged = [example for example in examples if "acceptable range" in example.answer]
    assert len(ranged) == 88
    assert all("acceptable_range" in example.metadata and "(" not in example.aliases[0] for example in ranged)


def test_real_triviaqa(shared):
    task = TriviaQA(path=str(shared / "data/triviaqa/validation.jsonl"), limit=100, dev_size=50, train_size=100)
    task.check()
    assert task.examples("test")[0].answer == "Sunset Boulevard"
    assert len(task.pairs()) > 90


def test_a_task_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Facts().limit = 3
    assert issubclass(Facts, Task)
