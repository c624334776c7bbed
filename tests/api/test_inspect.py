"""Inspect: a task of one's own through a steered model, read back from its log."""

import asyncio
from pathlib import Path

import pytest
from steering_parts import QUESTIONS

pytest.importorskip("inspect_ai", reason="inspect-ai is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # the evaluation framework has warnings of its own


def answers(steer: Path | None, folder: Path) -> list[str]:
    """Completions of our questions in Inspect's log."""
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import get_model
    from inspect_ai.scorer import includes

    import harness.bridges.inspect  # noqa: F401 (an installed copy is found by its entry point)

    options = {} if steer is None else {"steer": str(steer)}
    model = get_model("harness/tiny", dtype="float64", memoize=False, **options)
    task = Task(dataset=[Sample(input=question, target="x") for question in QUESTIONS], scorer=includes())
    (log,) = eval(task, model=model, max_tokens=12, log_dir=str(folder), display="none")
    assert log.status == "success", log.error
    return [sample.output.completion for sample in log.samples or []]


def test_a_task_runs_on_a_steered_model_and_gives_the_engines_texts(model, vector, tmp_path):
    steer = vector.at(layer=1, strength=4)
    bundle = steer.save(tmp_path / "v.safetensors")
    assert answers(None, tmp_path / "a") == model.generate(QUESTIONS, max_new_tokens=12)
    assert answers(bundle, tmp_path / "b") == model.generate(QUESTIONS, steer=steer, max_new_tokens=12)


def test_requests_that_wait_together_are_one_batch(monkeypatch):
    from inspect_ai.model import ChatMessageUser, GenerateConfig

    from harness.bridges.inspect import HarnessAPI

    api = HarnessAPI("tiny", dtype="float64")
    sizes: list[int] = []
    run = api._run
    monkeypatch.setattr(api, "_run", lambda batch: sizes.append(len(batch)) or run(batch))

    async def ask() -> list[str]:
        config = GenerateConfig(max_tokens=4)
        questions = [f"{question} {number}" for number in range(3) for question in QUESTIONS]
        requests = (api.generate([ChatMessageUser(content=text)], [], "none", config) for text in questions)
        return [output.completion for output in await asyncio.gather(*requests)]

    assert len(asyncio.run(ask())) == 6
    assert sizes == [6]
