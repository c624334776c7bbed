"""One job over several workers: what lies on the disk afterwards is what one process leaves, byte by byte."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.build import Job, build
from harness.config import composed
from harness.executors import crew
from harness.run import run

SMALL = (
    *("model=tiny", "model.dtype=float64", "tracking=none", "task.limit=6", "task.train_size=12", "task.dev_size=3"),
    *("task.max_new_tokens=5", "engine.max_rows=2", "evaluator=[token_overlap,perplexity]"),
)
SEARCHES = {
    "per_prompt": ("search.num_trials=3", "search.trials_per_round=2", "search.startup_trials=1"),
    "dev_split": ("search.num_trials=3", "search.trials_per_round=2", "search.startup_trials=1"),
    "fixed": ("task.limit=20",),
    "equal_kl": ("search.max_steps=3", "search.tolerance=0.9", "search.target_kl=0.001"),
}
RECORDS = (
    *("trials.jsonl", "generations.jsonl", "artifact.safetensors", "receipt.json", "sizes.json", "prepared.json"),
    *("meta.json", "equal_kl.json"),
)
TWO = ("executor=processes", "executor.workers=2", "executor.threads=1")


def job_of(out: Path, *overrides: str) -> Job:
    given = [*SMALL, f"out={out}", *overrides]
    return build(*composed(given), given)


def records(out: Path) -> dict[str, bytes]:
    """Everything that was generated, and the scores, byte by byte."""
    files = [path for name in RECORDS for path in out.glob(f"generations/*/{name}")]
    return {str(path.relative_to(out)): path.read_bytes() for path in [*files, *out.glob("*/scores.jsonl")]}


def work(out: Path) -> list[tuple[str, int]]:
    """Each piece of work and its tokens; seconds and memory differ by nature."""
    (path,) = out.glob("generations/*/cost.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["name"], row["forward_tokens"]) for row in rows]


@pytest.fixture(scope="module", autouse=True)
def _no_worker_stays() -> Iterator[None]:
    yield
    crew.dismiss_crews()


@pytest.mark.parametrize("search", SEARCHES)
def test_two_workers_leave_what_one_process_leaves(
    search: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("method=caa", f"search={search}", *SEARCHES[search])
    _, alone = run(job_of(tmp_path / "alone", *settings))
    with monkeypatch.context() as patch:
        for name in ("harness.steps.load_model", "harness.subject.scorers.load_model"):
            patch.setattr(name, lambda model: pytest.fail("this process loaded the model"))
        _, together = run(job_of(tmp_path / "together", *settings, *TWO))

    assert records(tmp_path / "together") == records(tmp_path / "alone")
    assert work(tmp_path / "together") == work(tmp_path / "alone")
    assert together.key == alone.key
    assert together.config == {**alone.config, "out": str(tmp_path / "together")}
    assert together.estimates == alone.estimates
