"""A terminal that knows no character beyond ASCII: everything is printed, what it lacks as a question mark."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PLAIN = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(REPOSITORY)}
SMALL = (
    *("method=caa", "model=tiny", "search=fixed", "task.limit=4", "task.train_size=8", "task.max_new_tokens=4"),
    *("tracking=none", "evaluator=token_overlap", "controls=[shuffled]"),
)


@pytest.mark.parametrize(
    "command",
    [
        ("harness", "--help"),
        ("harness", *SMALL, "out=OUT"),
        ("harness.compare", "OUT", "--explain"),
        ("harness.doctor", *SMALL, "out=OUT"),
        ("harness.score", "OUT/facts-*", "evaluator=[token_overlap]"),
    ],
    ids=lambda command: command[0] + command[1][:6],
)
def test_every_command_prints(command: tuple[str, ...], out_of_a_run: Path) -> None:
    words = [word.replace("OUT", str(out_of_a_run)) for word in command[1:]]
    expanded = [str(found) for word in words for found in (out_of_a_run.glob("facts-*") if "*" in word else [word])]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"} | PLAIN
    done = subprocess.run(
        [sys.executable, "-m", command[0], *expanded], env=environment, capture_output=True, cwd=out_of_a_run
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert done.stdout.isascii()
    assert len(done.stdout.splitlines()) > 3


@pytest.fixture(scope="module")
def out_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of a method and its control, made in a terminal of the same kind."""
    out = tmp_path_factory.mktemp("plain")
    command = [sys.executable, "-m", "harness", *SMALL, f"out={out}"]
    subprocess.run(command, env=os.environ | PLAIN, check=True, capture_output=True, cwd=out)
    return out
