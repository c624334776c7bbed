"""``harness.bench --gpu`` on a shape that a processor can run, and what it says where there is no GPU."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from bench import gpu
from bench.__main__ import main
from bench.gpu import Case, Measured
from bench.timing import Timing
from harness.subject import graphs

SMALL = ["--gpu", "--device", "cpu", "--shapes", "tiny", "--batch", "4", "--new-tokens", "3", "--threads", "1"]


def test_without_a_gpu_it_says_so_and_measures_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU here"):
        main(["--gpu", "--threads", "1"])
    assert "|" not in capsys.readouterr().out


def test_every_way_is_timed_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Graphs without a code generator: what they compute is the same, and no C++ compiler runs.
    monkeypatch.setattr(graphs, "compiled", partial(graphs.compiled, backend="eager"))
    assert main([*SMALL, "--repeats", "2", "--output", str(tmp_path / "gpu.json")]) == 0

    (result,) = json.loads((tmp_path / "gpu.json").read_text())["gpu"].values()
    engine = [Case(number, compiled).label for compiled in (False, True) for number in (0, 1)]
    assert list(result["ways"])[2:] == engine
    assert len(result["ways"]) == 6
    assert all(len(way["seconds"]) == 2 and min(way["seconds"]) > 0 for way in result["ways"].values())
    assert result["ways"][engine[0]]["per_step"]["operators"] > 50
    assert result["left_out"] == {}
    assert capsys.readouterr().out.count("| engine, ") == 4


def test_what_comes_too_late_is_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--minutes", "0"]) == 0
    printed = capsys.readouterr().out
    assert "left out: engine, un-steered (time was up)" in printed
    assert "| engine, " not in printed


def test_ratios_are_taken_within_a_repeat() -> None:
    measured = Measured({
        Case(0, False).label: [Timing(4, 0.0, seconds, 0.0) for seconds in (1.0, 10.0, 2.0)],
        Case(16, False).label: [Timing(4, 0.0, seconds, 0.0) for seconds in (2.0, 20.0, 4.0)],
    })  # fmt: skip
    ways = gpu.figures(measured, [Case(0, False), Case(16, False)], new_tokens=10)["ways"]
    assert ways[Case(16, False).label]["of_unsteered"] == 0.5
    assert ways[Case(0, False).label]["tokens_per_second"] == 4 * 10 / 2.0


def test_torch_and_transformers_are_enough() -> None:
    code = "import sys, bench.__main__, bench.gpu; print(*sys.modules)"
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    out = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {folders}; {code}"], capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    imported = {name.partition(".")[0] for name in out.stdout.split()}
    assert "transformers" in imported
    # transformers imports scipy where it is there.
    assert not imported & {"hydra", "omegaconf", "datasets", "wandb", "jaxtyping", "optuna"}
