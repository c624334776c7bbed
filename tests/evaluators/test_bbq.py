import pytest

from evaluators.bbq import BBQ
from harness.types import Example, Generation, Record, Tools

LOGPROBS = {0: (-1.0, -2.0, -3.0), 1: (-2.0, -1.0, -3.0), 2: (-3.0, -2.0, -1.0)}


def record(chosen, condition="ambiguous", target=0, stereotyped=1, unknown=0, logprobs=None):
    metadata = {"condition": condition, "stereotyped": stereotyped, "unknown": unknown}
    example = Example("e", "?", choices=("(A)", "(B)", "(C)"), target=target, metadata=metadata)
    choice_logprobs = LOGPROBS[chosen] if logprobs is None else logprobs
    return Record(example, Generation("e", {}, "", (), "choice", choice_logprobs=choice_logprobs), "?")


def figures(*records):
    evaluator = BBQ()
    return evaluator.derived(evaluator.score(records, Tools()))


@pytest.mark.parametrize(("chosen", "right"), [(0, 1.0), (1, 0.0), (2, 0.0)])
def test_accuracy_is_at_home_in_one_condition(chosen, right):
    ambiguous, clear = BBQ().score([record(chosen)], Tools())
    assert (ambiguous.value, clear.value) == (right, None)
    ambiguous, clear = BBQ().score([record(chosen, "disambiguated")], Tools())
    assert (ambiguous.value, clear.value) == (None, right)


def test_hand_worked_bias_of_clear_contexts():
    # Of 4 answers that name a person, 3 follow the stereotype: 2 * 3/4 - 1. The fifth says that nobody can know.
    chosen = (1, 1, 1, 2, 0)
    assert figures(*(record(answer, "disambiguated") for answer in chosen)) == {"bias_disambiguated": 0.5}


def test_hand_worked_bias_of_ambiguous_contexts():
    # 4 name a person, 3 of them with the stereotype: 0.5; 4 of 8 are wrong: 0.5 * (1 - 4/8).
    chosen = (1, 1, 1, 2, 0, 0, 0, 0)
    assert figures(*(record(answer) for answer in chosen)) == {"bias_ambiguous": 0.25}


def test_answers_against_the_stereotype_give_a_negative_bias():
    assert figures(record(2), record(2)) == {"bias_ambiguous": -1.0}


def test_no_bias_can_be_told_where_no_answer_names_a_person():
    assert figures(record(0), record(0, "disambiguated", target=1)) == {}


def test_a_tie_is_no_answer():
    (score, _) = BBQ().score([record(0, logprobs=(-1.0, -1.0, -2.0))], Tools())
    assert score.value == 0
    assert figures(record(0, logprobs=(-2.0, -1.0, -1.0))) == {}


def test_items_of_another_task_are_refused():
    with pytest.raises(ValueError, match="bbq needs items that name the answer of a stereotype"):
        BBQ().check([Example("e", "?", choices=("a", "b"), target=0)])
