"""What the doctor says of runs that can start and of runs that cannot."""

import math
import re

import pytest
from child import TINY, Cli

from harness.build import build
from harness.commands import doctor
from harness.config import composed
from harness.rehearsal import Forecast
from harness.scoring import Metric


def test_a_healthy_run(tool: Cli) -> None:
    done = tool(doctor.main, *TINY, "method=segmented", "task.limit=3", "search.num_trials=5")
    assert done.status == 0, done.out
    for words in (
        "tiny-llama",
        "million weights",
        "GiB free",
        "3 test items",
        "off (tracking=none)",
        "engine",
        "tokens/s",
    ):
        assert words in done.out
    assert "first logits as transformers computes them" in " ".join(done.out.split())
    assert "18 texts" in done.out, "3 items, 5 trials and the un-steered text each"
    assert "facts: 3 questions, 1 claims: too few to see any gain in correct" in " ".join(done.out.split())
    assert "ready to run" in done.out


@pytest.mark.parametrize(
    ("count", "tests", "least", "most"), [(150, 1, 0.10, 0.115), (150, 5, 0.125, 0.145), (1000, 1, 0.035, 0.045)]
)
def test_the_gain_that_can_be_seen_is_that_of_the_textbook(count: int, tests: int, least: float, most: float) -> None:
    """(1.96 + 0.84) standard errors, of 20 % discordant pairs; the exact test asks for a little more."""
    correct = Metric("correct", True, 0.0, 1.0, "proportion")
    gain = re.search(r"a gain of ([\d.]+) in correct can be seen", doctor.seen(correct, count, tests))
    assert gain
    assert least <= float(gain[1]) <= most


def test_a_gain_of_a_mean_is_in_standard_deviations() -> None:
    words = doctor.seen(Metric("logit_difference", True, -math.inf, math.inf), 100, 1)
    assert words == "0.28 standard deviations of the differences in logit_difference can be seen"


def test_a_sweep_is_added_up(tool: Cli) -> None:
    arguments = ("-m", "method=baseline,full_layer", "task.limit=2", "num_trials=3")
    done = tool(doctor.main, *TINY, *arguments)
    assert done.status == 0, done.out
    assert "2 jobs can be built" in done.out
    assert "10 texts" in done.out, "2 of the baseline, 2 items with 3 trials and the un-steered text each"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=nosuch"], "method=nosuch does not exist"),
        (["method=caa", "method.layer=99"], "layer must be a whole number from 0 to 3"),
        (["task.path=absent.csv"], "task.path=absent.csv does not exist"),
        (["evaluator=simpleqa_rubric", "judge=openai"], "no judge key"),
        (["model=hf", "model.id=some/model"], "cannot fetch some/model"),
        (["task.max_new_tokens=5000"], "more than the context of tiny-llama, 1,024 tokens"),
    ],
)
def test_what_stands_in_the_way(tool: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    done = tool(doctor.main, *TINY, *arguments)
    assert done.status == 1
    (last,) = [line for line in done.out.splitlines() if line.startswith("cannot run: ")]
    assert message in last
    assert "tokens/s" not in done.out, "no weights are loaded to measure what cannot run"


def test_seconds_are_those_of_reading_and_of_writing() -> None:
    work = doctor.estimate(
        Forecast(rows=10, tokens=600, new_tokens=100), doctor.Speed(prefill=100, decode=10, prompt_tokens=50)
    )
    assert (work.rows, work.tokens) == (10, 600)
    assert work.seconds == pytest.approx(500 / 100 + 100 / 10)


def test_gradings_of_several_jobs_are_not_taken_for_the_same() -> None:
    small = [*TINY, "task.limit=3", "num_trials=2", "evaluator=[simpleqa_rubric]"]
    jobs = [build(*composed([*small, f"method={name}"])) for name in ("baseline", "full_layer", "segmented")]
    gradings = [grading for job in jobs for grading in doctor._gradings(job)]
    assert len(gradings) == len(set(gradings)) == 9
    assert len(list(doctor._gradings(build(*composed([*small, "protocol=baseline_failures"]))))) == 3 + 3
