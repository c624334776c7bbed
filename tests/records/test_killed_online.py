"""A job that is killed while it is online with W&B: what it told stays there, and the same command replaces the run."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from wandb_server import Server, serving

REPOSITORY = Path(__file__).parents[2]
COMMAND = (
    "model=tiny", "method=segmented", "evaluator=token_overlap", "task.limit=8", "task.max_new_tokens=6",
    "search.trials_per_round=1", "search.startup_trials=2", "engine.max_rows=2", "num_trials=300",
    "tracking.mode=online", "tracking.entity=lab",
)  # fmt: skip
SECONDS = 600


def started(folder: Path, server: Server, *settings: str) -> subprocess.Popen[bytes]:
    """``python -m harness`` in a process of its own, logged in at the server."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": "a" * 40,
        "WANDB_CONFIG_DIR": str(folder / "config"),
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "NETRC": str(folder / "netrc"),
        "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "0.5",  # seconds; a user's client sends every 15
    }
    environment.pop("WANDB_MODE", None)
    with (folder / "output.txt").open("ab") as output:
        command = [sys.executable, "-m", "harness", *COMMAND, *settings]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)


def wait_for(reached: Callable[[], bool], child: subprocess.Popen[bytes], folder: Path) -> None:
    ends = time.monotonic() + SECONDS
    while not reached():
        if child.poll() is not None or time.monotonic() > ends:
            child.kill()
            child.wait()
            pytest.fail((folder / "output.txt").read_text())
        time.sleep(0.05)


def curve(server: Server) -> list[float]:
    """What the search had reached after each round, as far as the server knows."""
    lines = [json.loads(server.history[step]) for step in sorted(server.history)]
    return [line["search/round_best"] for line in lines if "search/round_best" in line]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_job_killed_online_leaves_settings_and_curve_and_is_replaced_when_it_goes_on(tmp_path: Path) -> None:
    with serving() as server:
        child = started(tmp_path, server)
        wait_for(lambda: len(curve(server)) >= 3, child, tmp_path)
        child.kill()
        child.wait(30)

        config = json.loads(server.runs[0]["config"])
        assert config["method"]["value"]["_target_"] == "methods.fusion.FusionSteering"
        reached = curve(server)
        time.sleep(5)  # W&B's own process outlives it for a moment
        assert curve(server)[: len(reached)] == reached, "what had arrived stays"
        config = json.loads(server.runs[-1]["config"])
        assert config["run"]["value"]["status"] == "running", "which is how a job that was killed is told from others"

        server.history.clear()
        child = started(tmp_path, server)
        assert child.wait(SECONDS) == 0, (tmp_path / "output.txt").read_text()
        assert server.exit_codes[-1] == 0
        assert len({run["name"] for run in server.runs}) == 1, "the same run goes on"
        assert json.loads(server.runs[-1]["config"])["run"]["value"]["status"] == "done"
        assert json.loads(server.files["wandb-summary.json"])["overlap/num_scored"] == 8
        assert sorted(server.history)[0] == 0, "its curve begins at the first line"
