"""Several completions of each item: items of one cluster, drawn apart, counted as one question."""

import pytest

from harness.laws.lab import job_of, workbench_of
from harness.statistics import estimate
from harness.types import Metric
from harness.workbench import Request

SMALL = ("model=tiny", "model.dtype=float64", "method=baseline", "tracking=none", "task=facts", "task.limit=3")
SAMPLED = (*SMALL, "task.num_samples=4", "task.temperature=1.0", "task.max_new_tokens=6")


def test_each_item_stands_there_as_often_as_it_is_drawn():
    single, task = job_of([*SMALL, "task.temperature=1.0"]).task, job_of(SAMPLED).task
    for split in ("test", "dev"):
        names = [example.id for example in single.examples(split)]
        found = task.examples(split)
        assert [example.id for example in found] == [f"{name}~{number}" for name in names for number in range(4)]
        assert [example.unit for example in found] == [name for name in names for _ in range(4)]
    assert task.examples("train") == single.examples("train")
    assert task.fingerprint(["test"]) != single.fingerprint(["test"])


def test_samples_are_drawn_apart_and_again_the_same():
    bench = workbench_of(job_of(SAMPLED))
    requests = [Request(example, {}, 0, 1.0) for example in bench.task.examples("test")]
    texts = [generation.token_ids for generation in bench.run(requests)]
    assert all(len(set(texts[start : start + 4])) > 1 for start in range(0, len(texts), 4))
    assert [generation.token_ids for generation in bench.run(requests[4:6])] == texts[4:6]


def test_what_counts_is_the_mean_of_a_question():
    metric = Metric("correct", higher_is_better=True, low=0.0, high=1.0)
    units = [example.unit for example in job_of(SAMPLED).task.examples("test")]
    drawn = estimate(metric, [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], units)
    questions = estimate(metric, [0.25, 0.5, 0.0])
    assert drawn.value == pytest.approx(0.25)
    assert (drawn.low, drawn.high) == (questions.low, questions.high)
