"""Published data sets with right answers, and what all tasks with a sample share."""

import json

import pytest
from laws.tiny_classifier import classifier_folder
from laws.yamls import class_of

from harness.laws.lab import job_of
from harness.tasks.boolq import BoolQ
from harness.tasks.copa import COPA
from harness.tasks.gsm8k import GSM8K
from harness.tasks.published import SampledTask
from harness.tasks.winogrande import WinoGrande
from harness.types import Pair

BOOLQ = {"question": "is it late", "passage": "It is night.", "answer": True}
COPA_ROW = {
    "premise": "It rained.",
    "choice1": "I got wet.",
    "choice2": "The sun rose.",
    "question": "effect",
    "label": 0,
}
WINO = {"sentence": "The cup hit the wall and the _ broke.", "option1": "cup", "option2": "wall", "answer": "1"}
SAMPLED = ("boolq", "copa", "winogrande", "gsm8k", "harmful", "realtoxicityprompts", "bbq")
GSM = {"question": "How many?", "answer": "3 x 4 = <<3*4=12>>12 eggs.\n#### 12"}


@pytest.fixture
def file(tmp_path):
    """Writes rows as JSON Lines and returns the path."""

    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.mark.parametrize(("answer", "right", "wrong", "target"), [(True, "Yes", "No", 0), (False, "No", "Yes", 1)])
def test_boolq_asks_for_a_word(file, answer, right, wrong, target):
    (example,) = BoolQ(path=file({**BOOLQ, "answer": answer})).examples("test")
    assert example.question == "It is night.\n\nIs it late?\n\nReply with Yes or No."
    assert example.choices == ("Yes", "No")
    assert (example.answer, example.distractors, example.target) == (right, (wrong,), target)


def test_boolq_reads_true_and_false_from_a_csv(tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("question,passage,answer\nis it late?,Night.,True\nis it early?,Night.,False\n")
    first, second = BoolQ(path=str(table)).examples("test")
    assert (first.answer, second.answer) == ("Yes", "No")
    assert "Is it late?\n" in first.question


@pytest.mark.parametrize(("question", "opening"), [("effect", "It rained so"), ("cause", "It rained because")])
def test_copa_continues_the_premise(file, question, opening):
    (example,) = COPA(path=file({**COPA_ROW, "question": question, "label": "1"})).examples("test")
    assert example.question == opening
    assert example.choices == (" I got wet.", " the sun rose.")
    assert (example.target, example.answer, example.distractors) == (1, " the sun rose.", (" I got wet.",))


def test_winogrande_fills_the_blank_and_goes_on(file):
    (example,) = WinoGrande(path=file({**WINO, "answer": 2})).examples("test")
    assert example.question == "The cup hit the wall and the"
    assert example.choices == (" cup broke.", " wall broke.")
    assert (example.target, example.answer) == (1, " wall broke.")


def test_gsm8k_takes_the_final_number_as_gold_and_cuts_the_calculator(file):
    (example,) = GSM8K(path=file({**GSM, "answer": "2,000 - 1 = <<2000-1=1999>>1,999\n#### 1,999"})).examples("test")
    assert example.answer == "1,999"
    assert example.metadata["solution"] == "2,000 - 1 = 1,999\n#### 1,999"
    assert example.question.startswith("How many?\n\nWork it out step by step.")


def test_gsm8k_learns_from_its_own_solution_against_that_of_another_item(file):
    rows = [{**GSM, "split": "train"}, {"question": "And?", "answer": "It is 7.\n#### 7", "split": "train"}]
    same = {"question": "Again?", "answer": "That is 12.\n#### 12", "split": "train"}
    pairs = GSM8K(path=file(*rows, same, {**GSM, "question": "Test?", "split": "test"})).pairs()
    wrong = {pair.positive: pair.negative for pair in pairs}
    assert wrong["3 x 4 = 12 eggs.\n#### 12"] == "It is 7.\n#### 7"  # the other 12 is no wrong answer
    assert wrong["It is 7.\n#### 7"] == "That is 12.\n#### 12"  # the nearer of two in length


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (BoolQ, {**BOOLQ, "answer": "maybe"}, "row 1: answer must be true or false, got 'maybe'"),
        (BoolQ, {**BOOLQ, "passage": ""}, "row 1: passage must be a text that is not empty"),
        (COPA, {**COPA_ROW, "question": "why"}, "row 1: question must be cause or effect, got 'why'"),
        (COPA, {**COPA_ROW, "label": 2}, "row 1: label must be 0, 1, got 2"),
        (COPA, {**COPA_ROW, "label": True}, "row 1: label must be 0, 1, got True"),
        (GSM8K, {**GSM, "answer": "12"}, "row 1: answer must end in #### and a number, got '12'"),
        (GSM8K, {**GSM, "answer": "12 #### twelve"}, "must end in #### and a number"),
        (WinoGrande, {**WINO, "answer": ""}, "row 1: answer must be 1, 2, got ''"),
        (WinoGrande, {**WINO, "sentence": "The cup broke."}, "must hold one _ and something before it"),
        (WinoGrande, {**WINO, "sentence": "_ and _ broke."}, "must hold one _ and something before it"),
        (WinoGrande, {**WINO, "sentence": "_ broke."}, "must hold one _ and something before it"),
    ],
)
def test_rows_that_hold_something_else_are_named(file, task, row, message):
    with pytest.raises(ValueError, match=message):
        task(path=file(row)).check()


@pytest.mark.parametrize("row", [BOOLQ, COPA_ROW, WINO])
def test_pairs_are_the_right_and_the_wrong_option(file, row):
    task = {id(BOOLQ): BoolQ, id(COPA_ROW): COPA, id(WINO): WinoGrande}[id(row)]
    another = {task.asks: f"Once more: {row[task.asks]}"}
    made = task(path=file({**row, "split": "train"}, {**row, **another, "split": "test"}))
    (item,) = made.examples("train")
    assert made.pairs() == [Pair(item.question, item.answer, item.distractors[0])]


@pytest.mark.parametrize("name", SAMPLED)
class TestSample:
    def test_ships_with_every_split_and_fits_every_need(self, name):
        task = class_of("task", name)(sample=True)
        assert isinstance(task, SampledTask)
        task.check()
        data = task.fit_data(task.offers())
        assert any((data.pairs, data.source, data.labelled))
        assert task.examples("dev")
        questions = [item.question for split in ("train", "dev", "test") for item in task.examples(split)]
        assert len(questions) >= 16

    def test_a_method_runs_on_it_without_the_hub(self, name):
        own = [f"evaluator.toxicity.model={classifier_folder()}"] if name == "realtoxicityprompts" else []
        job = job_of(["model=tiny", "tracking=none", f"task={name}", "task.sample=true", "method=baseline", *own])
        assert job.task.origin == f"the sample of {name}"

    def test_and_a_file_are_two_sources(self, name, file):
        with pytest.raises(ValueError, match=r"task\.path=.* and task\.sample=true name two sources"):
            class_of("task", name)(path=file(BOOLQ), sample=True).check()


def test_the_wrong_option_is_right_as_often_in_each_place():
    for task in (BoolQ, COPA, WinoGrande):
        targets = [item.target for item in task(sample=True).examples("test")]
        assert 0.3 <= sum(targets) / len(targets) <= 0.7, task.name


def test_half_a_character_is_named(file):
    with pytest.raises(ValueError, match=r"row 1: passage holds half a character, '.ud83d' at position 3"):
        BoolQ(path=file({**BOOLQ, "passage": "so \ud83d it is"})).check()
