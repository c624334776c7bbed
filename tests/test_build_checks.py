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
