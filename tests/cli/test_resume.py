"""Killed, out of disk, torn: the same command goes on where it stopped and ends with the same records."""

import json
import random
import shutil
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

COMMAND = (
    "method=segmented", "model.dtype=float64", "evaluator=token_overlap", "task.limit=6", "search.num_trials=6",
    "search.trials_per_round=2", "search.startup_trials=2", "engine.max_rows=2",
)  # fmt: skip
Spawn = Callable[..., BaseProcess]
NUM_TRIALS = 6 * (1 + 6)


def rows(folder: Path, name: str) -> list[dict]:
    (path,) = folder.glob(f"runs/generations/*/{name}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def complete(spawn: Spawn, folder: Path) -> None:
    child = spawn(*COMMAND, folder=folder)
    child.join(240)
    assert child.exitcode == 0, (folder / "stderr").read_text()


@pytest.fixture(scope="module")
def uninterrupted(spawn: Spawn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    complete(spawn, folder)
    assert len(rows(folder, "trials")) == NUM_TRIALS
    return folder


def assert_equal_records(folder: Path, reference: Path) -> None:
    """The same records in the same order, equal to the last digit, and the same cost but for the clock."""
    for name in ("trials", "generations"):
        assert rows(folder, name) == rows(reference, name)
    assert work(folder) == work(reference)
    (run,) = folder.glob("runs/*/run.json")
    assert json.loads(run.read_text())["status"] == "done"


def work(folder: Path) -> dict[str, int]:
    """Forward tokens of each piece of work."""
    written = rows(folder, "cost")
    tokens = {row["name"]: row["forward_tokens"] for row in written}
    assert len(tokens) == len(written), "a piece of work was counted twice"
    return tokens


def lines_so_far(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("runs/generations/*/trials.jsonl"))


def kill_at_a_random_moment(child: BaseProcess, folder: Path, chance: random.Random) -> bool:
    """SIGKILL after a random number of further trials and a random moment more; False if it finished before."""
    target = lines_so_far(folder) + chance.randint(0, 10)
    while child.is_alive() and lines_so_far(folder) < target:
        time.sleep(0.002)
    time.sleep(chance.random() * 0.2)
    if not child.is_alive():
        return False
    child.kill()
    child.join(30)
    return True


def kill_and_continue(spawn: Spawn, folder: Path, reference: Path, kills: int) -> None:
    chance, killed = random.Random(kills), 0
    while killed < kills:
        child = spawn(*COMMAND, folder=folder)
        if kill_at_a_random_moment(child, folder, chance):
            killed += 1
            continue
        child.join(30)
        assert child.exitcode == 0, (folder / "stderr").read_text()
        assert_equal_records(folder, reference)
        shutil.rmtree(folder / "runs")
    complete(spawn, folder)
    assert_equal_records(folder, reference)


@pytest.mark.timeout(900)
def test_killed_four_times_it_ends_with_the_same_records(spawn: Spawn, tmp_path: Path, uninterrupted: Path) -> None:
    kill_and_continue(spawn, tmp_path, uninterrupted, 4)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_a_hundred_times_it_ends_with_the_same_records(
    spawn: Spawn, tmp_path: Path, uninterrupted: Path
) -> None:
    kill_and_continue(spawn, tmp_path, uninterrupted, 100)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_twenty_times_it_ends_with_the_same_records(spawn: Spawn, tmp_path: Path, uninterrupted: Path) -> None:
    kill_and_continue(spawn, tmp_path, uninterrupted, 20)


@pytest.mark.parametrize("left", [b'{"example_id": "fac', b""], ids=["torn line", "torn round"])
def test_what_a_kill_left_of_a_round_is_dropped(spawn: Spawn, tmp_path: Path, uninterrupted: Path, left: bytes) -> None:
    shutil.copytree(uninterrupted / "runs", tmp_path / "runs")
    (trials,) = tmp_path.glob("runs/generations/*/trials.jsonl")
    lines = trials.read_bytes().splitlines(keepends=True)
    kept = 17 if left else 15  # 2 prompts: 2 incumbents, then rounds of 4; 15 lines end inside a round
    trials.write_bytes(b"".join(lines[:kept]) + left)
    (trials.parent / "generations.jsonl").unlink()
    meta = trials.parent / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "files": {}}))
    (trials.parent / "receipt.json").unlink()
    for run in tmp_path.glob("runs/*/run.json"):
        run.unlink()
    complete(spawn, tmp_path)
    assert_equal_records(tmp_path, uninterrupted)


def test_a_full_disk_stops_in_one_line_and_the_run_goes_on_later(
    spawn: Spawn, tmp_path: Path, uninterrupted: Path
) -> None:
    trials = next(uninterrupted.glob("runs/generations/*/trials.jsonl")).stat().st_size
    largest = max(path.stat().st_size for path in uninterrupted.rglob("run.json"))
    limit = max(largest + 1000, trials * 2 // 3)
    assert limit < trials, "the limit must hit the trials, not run.json"

    child = spawn(*COMMAND, folder=tmp_path, file_limit=limit)
    child.join(240)
    assert child.exitcode == 1
    (line_printed,) = [line for line in (tmp_path / "stderr").read_text().splitlines() if line.strip()]
    assert "disk full while writing" in line_printed
    assert "trials.jsonl" in line_printed
    assert 0 < len(rows(tmp_path, "trials")) < NUM_TRIALS

    complete(spawn, tmp_path)
    assert_equal_records(tmp_path, uninterrupted)
