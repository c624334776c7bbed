"""Evaluators and objectives that a task cannot have are refused before weights load."""

import pytest

from harness.laws.lab import job_of

TINY = ("model=tiny", "tracking=none", "task.limit=4")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("task=facts", "evaluator=[choice]"), "evaluator choice scores options; task facts has none"),
        (
            ("task=facts", "method=caa", "objective=choice"),
            "objective logit_difference scores options; task facts has none",
        ),
        (
            ("task=behaviors", "evaluator=[token_overlap]"),
            "evaluator token_overlap scores what was written; task behaviors compares options",
        ),
        (("task=behaviors", "evaluator=[choice,perplexity]"), "evaluator perplexity scores what was written"),
        (
            ("task=behaviors", "method=caa", "objective=overlap_perplexity"),
            "objective overlap scores what was written; task behaviors compares options",
        ),
    ],
)
def test_a_task_without_what_they_look_at_is_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        job_of([*TINY, *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("task.num_samples=3",), r"task\.num_samples=3 needs task\.temperature above 0"),
        (("task=behaviors", "task.temperature=1.0", "task.num_samples=3"), "needs a task that writes"),
        (("task.num_samples=0",), r"task\.num_samples must be a whole number from 1 on, got 0"),
        (("method=stars",), "steers samples of one prompt apart from each other: set task.num_samples to 2 or more"),
        (("method=stars", "task=sentiment"), "steers what is drawn; task sentiment also compares options"),
        (
            ("method=stars", "search=per_prompt", "task.num_samples=3", "task.temperature=1.0"),
            "search=per_prompt gives every sample parameters of its own",
        ),
    ],
)
def test_samples_that_cannot_be_drawn_or_steered_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        job_of([*TINY, "task=facts", "method=baseline", *overrides])


def test_an_objective_that_no_search_asks_for_is_not_looked_at():
    job_of([*TINY, "task=facts", "method=baseline", "objective=choice"])


def test_final_numbers_need_golds_with_numbers(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Who?", "answer": "Ada"}\n')
    with pytest.raises(ValueError, match="final_number: no gold holds a number; the first is 'Ada'"):
        job_of(["model=tiny", "tracking=none", f"task.path={rows}", "method=baseline", "evaluator=[final_number]"])


def test_a_prompt_template_shows_no_answer():
    with pytest.raises(ValueError, match=r"model\.prompt_template must not contain \{answer\}"):
        job_of([*TINY, "method=baseline", "model.prompt_template='{question} {answer}'"])
