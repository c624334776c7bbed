"""One job over several workers: what lies on the disk afterwards is what one process leaves, byte by byte."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from harness.build import build
from harness.config import composed
from harness.executors import crew
from harness.job import Job
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
REPOSITORY = Path(__file__).parents[2]
LONGER = ("method=segmented", "search=per_prompt", *SEARCHES["per_prompt"], "task.limit=24")
"""Six chunks of four prompts."""
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


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if "harness.executors.worker" in child.cmdline()]


def wait_until(is_true: Callable[[], object]) -> None:
    """The time limit of the test is that of the wait."""
    while not is_true():
        time.sleep(0.01)


def has_generations(out: Path) -> bool:
    """Whether a chunk is written: with two workers, others are under way then."""
    return any(path.stat().st_size for path in out.glob("generations/*/generations.jsonl"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    run(job_of(out, *LONGER))
    return out


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


def test_what_a_killed_worker_had_is_done_again(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def kill_one() -> None:
        wait_until(lambda: has_generations(tmp_path))
        workers_of(psutil.Process())[0].kill()

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    run(job_of(tmp_path, *LONGER, *TWO))
    killer.join()

    assert re.search(
        r"lost the worker on .* \(process \d+\); another worker does its work once more", capsys.readouterr().err
    )
    assert records(tmp_path) == records(alone)
    assert work(tmp_path) == work(alone)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_driver_takes_its_workers_along_and_the_same_command_goes_on(alone: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness", *SMALL, f"out={tmp_path}", *LONGER, *TWO]
    settings = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=settings, cwd=tmp_path) as driver:
        wait_until(lambda: has_generations(tmp_path) or driver.poll() is not None)
        workers = workers_of(psutil.Process(driver.pid))
        driver.kill()
    assert len(workers) == 2
    _gone, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    assert not list(tmp_path.glob("generations/*/receipt.json")), "it was killed after it had finished"

    run(job_of(tmp_path, *LONGER, *TWO))
    assert records(tmp_path) == records(alone)
    assert work(tmp_path) == work(alone)


def test_an_error_in_a_worker_is_the_jobs_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no gate tells source from control texts") as failed:
        run(job_of(tmp_path, "method=dsas", "search=fixed", "task=sentiment", *TWO))
    assert "in a worker on" in "".join(failed.value.__notes__)


def test_workers_that_cannot_begin_are_not_started_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crew.dismiss_crews()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"workers end before they can begin: process \d+ ended with status 1"):
        run(job_of(tmp_path, "method=caa", "search=fixed", *TWO))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("executor=processes", "executor.workers=0"), "executor.workers must be at least 1, got 0"),
        (("executor=processes", "executor.threads=0"), "executor.threads must be at least 1, got 0"),
        (("executor=elsewhere",), "executor=elsewhere does not exist; choose one of here, processes"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        job_of(tmp_path, "method=caa", *overrides)


CLUSTERS = {
    "ray": (("executor=ray",), "ray::_work"),
    "submitit": (("executor=submitit", "executor.cluster=local", "executor.mem_gb=4"), "submitit.core._submit"),
}
"""Settings of each, and a sign by which its workers are told from other processes."""


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_of_this_machine_leaves_what_one_process_leaves_though_a_worker_is_killed(
    name: str, alone: Path, tmp_path: Path
) -> None:
    settings, sign = CLUSTERS[name]
    given = (*settings, "executor.workers=2", "executor.gpus_per_worker=0", "executor.cpus_per_worker=1")
    command = [sys.executable, "-m", "harness", *SMALL, f"out={tmp_path / 'runs'}", *LONGER, *given]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    errors = tmp_path / "stderr"

    with errors.open("w") as stderr, subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=stderr) as driver:
        wait_until(lambda: has_generations(tmp_path / "runs") or driver.poll() is not None)
        descendants = psutil.Process(driver.pid).children(recursive=True)
        workers = [process for process in descendants if any(sign in word for word in process.cmdline())]
        workers[0].kill()
        assert driver.wait(900) == 0, errors.read_text()
    assert "lost the worker on" in errors.read_text()
    assert records(tmp_path / "runs") == records(alone)
    assert work(tmp_path / "runs") == work(alone)
    _gone, alive = psutil.wait_procs(descendants, timeout=60)
    assert not alive
