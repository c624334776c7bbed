"""``--cfg job`` shows what runs: the settings of every job, not those that jobs start from."""

from typing import Any

import pytest
import yaml
from child import Cli


def shown(out: str) -> list[tuple[str, dict[str, Any]]]:
    """The head line and the settings of each job."""
    parts = out.split("# job ")[1:]
    return [(part.partition("\n")[0], yaml.safe_load(part.partition("\n")[2])) for part in parts]


def test_jobs_of_an_experiment_show_their_final_settings(cli: Cli) -> None:
    done = cli("experiment=fusion_steering", "--cfg", "job", tiny=False)
    assert done.status == 0, done.err
    jobs = shown(done.out)
    assert [head.partition(":")[0] for head, _ in jobs] == ["1 of 3", "2 of 3", "3 of 3"]
    (_, baseline), (_, full), (_, segmented) = jobs
    assert baseline["method"]["_target_"] == "methods.baseline.Baseline"
    assert baseline["model"]["prompt_template"] == "{question}"
    for job in (full, segmented):
        assert job["method"]["mean"] == "sequence"
        assert (job["search"]["sampler"], job["search"]["incumbent"]) == ("random", False)
    assert list(full["method"]["segments"]) == ["all"]
    assert list(segmented["method"]["segments"]) == ["early", "middle", "late"]


def test_the_recipe_is_the_notebooks(cli: Cli) -> None:
    _, (_, full), _ = shown(cli("experiment=fusion_steering", "--cfg", "job", "--resolve", tiny=False).out)
    judge, model = full["judge"], full["model"]
    assert (judge["model"], judge["temperature"], judge["seed"]) == ("mistral-small-latest", 0.0, None)
    assert judge["key_variable"] == "MISTRAL_API_KEY"
    assert (model["id"], model["quantization"], model["dtype"]) == ("google/gemma-2-2b-it", "int8", "float16")
    graders = (full["evaluator"]["composite"], full["evaluator"]["simpleqa_rubric"], full["protocol"]["grader"])
    assert [grader["graded_text"] for grader in graders] == ["full"] * 3
    assert full["num_trials"] == full["search"]["num_trials"] == 5


def test_controls_and_combinations_are_shown_too(cli: Cli) -> None:
    jobs = shown(cli("method=segmented", "controls=auto", "--cfg", "job").out)
    assert [job["control"]["_target_"].rsplit(".")[-1] for _, job in jobs] == [
        "Control", "Control", "Shuffled", "RandomDirection", "BestOfN", "GoldInPrompt",
    ]  # fmt: skip
    both = shown(cli("-m", "method=caa,baseline", "--cfg", "job").out)
    assert [job["method"]["_target_"] for _, job in both] == [
        "methods.single_vector.SingleVector",
        "methods.baseline.Baseline",
    ]


@pytest.mark.parametrize("arguments", [("method=caa",), ("experiment=demo", "--package", "task")])
def test_one_job_and_one_part_are_left_to_hydra(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = cli(*arguments, "--cfg", "job")
    assert done.status == 0
    assert "# job 1 of" not in done.out
    assert "max_new_tokens" in done.out


def test_a_wrong_option_is_one_line(cli: Cli) -> None:
    assert "no option methd" in cli("experiment=demo", "methd=caa", "--cfg", "job").error
