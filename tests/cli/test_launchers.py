"""Sweeps in other processes: what they leave on the disk is what a sweep in one process leaves."""

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from child import TINY, Cli
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore

from harness import launching, workers
from harness.config import LAUNCHER_EXTRAS, PLUGIN_LAUNCHERS

REPOSITORY = Path(__file__).parents[2]
SWEEP = (
    *("method=caa", "method.layer=1,99,2", "search=per_prompt", "search.num_trials=2", "evaluator=token_overlap"),
    *("task.limit=3", "task.dev_size=4", "task.train_size=16"),
)
"""Three jobs, of which the second fails: the tiny model has 4 layers."""


def sweep(launcher: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", "-m", *TINY, *SWEEP, f"hydra/launcher={launcher}", *options]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    folder.mkdir(exist_ok=True)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=550)


def records(folder: Path) -> dict[Path, bytes]:
    """Everything that was generated, byte by byte."""
    generations = folder / "runs" / "generations"
    return {
        path.relative_to(generations): path.read_bytes()
        for name in ("trials.jsonl", "generations.jsonl")
        for path in generations.glob(f"*/{name}")
    }


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, bytes]:
    folder = tmp_path_factory.mktemp("serial")
    done = sweep("basic", folder)
    assert done.returncode == 1, done.stderr
    return records(folder)


@pytest.fixture
def no_process_stays() -> Iterator[None]:
    """Fails if a test leaves a process of this Python environment, or of Ray, behind."""
    before = set(psutil.pids())
    yield
    left = [process for process in psutil.process_iter(["cmdline", "cwd"]) if process.pid not in before]
    started_here = [process for process in left if _is_worker(process)]
    _gone, alive = psutil.wait_procs(started_here, timeout=20)
    assert not alive


def _is_worker(process: psutil.Process) -> bool:
    """Whether it is one that a launcher starts."""
    signs = ("loky", "submitit", "raylet", "gcs_server", "ray::")
    return process.status() != psutil.STATUS_ZOMBIE and any(
        sign in argument for argument in process.info["cmdline"] or () for sign in signs
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("no_process_stays")
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_a_sweep_in_other_processes_leaves_what_a_serial_one_leaves(
    launcher: str, serial: dict[Path, bytes], tmp_path: Path
) -> None:
    done = sweep(launcher, tmp_path)
    assert done.returncode == 1, done.stderr
    assert "error: job method.layer=99: layer must be a whole number from 0 to 3, got 99" in done.stderr
    assert len(serial) == 4, "trials and generations of two jobs"
    assert records(tmp_path) == serial
    assert "caa (layer=2)" in done.stdout
    report = (tmp_path / "runs" / "report.html").read_text()
    assert "layer=1" in report
    assert "layer=2" in report


def test_workers_take_different_places_and_see_one_gpu_each(tmp_path: Path) -> None:
    """Three workers, two GPUs: the third shares the first one's."""
    script = (
        "import os, sys; from harness.workers import take_place; take_place(); take_place();"
        "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script]

    with workers.places(3, ["4", "GPU-7"]):
        children = [
            subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _number in range(3)
        ]
        seen = [child.stdout.readline().strip() for child in children if child.stdout is not None]
        for child in children:
            child.communicate()

    assert sorted(seen) == ["4", "4", "GPU-7"]
    assert workers.PLACES not in os.environ


def test_a_worker_waits_until_a_place_is_free() -> None:
    script = "from harness.workers import take_place; take_place(); print('has one', flush=True); input()"
    command = [sys.executable, "-c", script]
    with workers.places(1, []):
        first, second = (
            subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _number in range(2)
        )
        ready, _, _ = select.select([first.stdout, second.stdout], [], [], 60)
        assert len(ready) == 1
        holder, waiting = (first, second) if ready[0] is first.stdout else (second, first)
        assert not select.select([waiting.stdout], [], [], 2)[0]
        holder.communicate("\n")
        assert waiting.communicate("\n", timeout=60)[0] == "has one\n"


def test_a_process_outside_any_places_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    workers.take_place()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(("launcher", "extra"), [("joblib", "joblib"), ("submitit_slurm", "slurm"), ("ray", "ray")])
def test_a_launcher_that_is_not_installed_names_its_extra(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, launcher: str, extra: str
) -> None:
    launching.register()
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"]["plugin"], f"{launcher}.yaml")
    done = cli("-m", f"hydra/launcher={launcher}", "method=baseline,caa")
    assert done.status == 2
    assert done.error == f"error: hydra/launcher={launcher} is not installed: pip install 'steering-harness[{extra}]'"


@pytest.mark.parametrize("launcher", sorted(LAUNCHER_EXTRAS))
def test_presets_keep_the_options_of_their_plug_in(launcher: str) -> None:
    launching.register()
    with initialize_config_module("conf", version_base="1.3"):
        node = compose("config", [f"hydra/launcher={launcher}"], return_hydra_config=True).hydra.launcher
        plugin = ConfigStore.instance().load(f"{PLUGIN_LAUNCHERS}/{launcher}.yaml").node
    assert set(node) == set(plugin)
    assert node._target_ == plugin._target_
    assert node != plugin
