"""The command line as a user meets it, in this process or in one of its own that can be killed."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
import torch
from child import TINY, Cli, Finished, run_as_module, run_quietly
from hydra.core.global_hydra import GlobalHydra


@pytest.fixture(scope="session", autouse=True)
def _one_thread(_threads: None) -> None:
    """Two threads on tiny tensors wait for each other more than they compute."""
    torch.set_num_threads(1)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """``python -m harness ARGUMENTS`` in this process, in an empty directory, on the tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str, tiny: bool = True) -> Finished:
        from harness.__main__ import console_main

        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["harness", *(TINY if tiny else ()), *arguments])
        capsys.readouterr()
        try:
            status = console_main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        printed = capsys.readouterr()
        return Finished(status, printed.out, printed.err)

    return run


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Another entry point in this process: ``tool(main, ARGUMENTS)``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(main: Callable[[list[str]], int], *arguments: str) -> Finished:
        GlobalHydra.instance().clear()
        capsys.readouterr()
        try:
            status = main(list(arguments))
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        printed = capsys.readouterr()
        return Finished(status, printed.out, printed.err)

    return run


def warm_context() -> ForkServerContext:
    """Processes forked from one that has imported everything, so that each starts at once."""
    context = multiprocessing.get_context("forkserver")
    commands = [f"harness.commands.{name}" for name in ("calibrate", "compare", "doctor", "export", "score")]
    context.set_forkserver_preload(["harness.__main__", "harness.sweep", *commands])
    return context


@pytest.fixture(scope="session")
def as_module() -> Callable[..., Finished]:
    """``python -m MODULE ARGUMENTS`` in a process of its own, ended if it takes too long.

    Its seconds are those of its own computing: on a busy machine it may wait several times as long.
    """
    context, numbers = warm_context(), itertools.count()

    def run(module: str, *arguments: str, folder: Path, seconds: float = 60.0) -> Finished:
        names = [f"{name}-{next(numbers)}" for name in ("stdout", "stderr")]
        settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200", "OPENAI_API_KEY": ""}
        process = context.Process(target=run_as_module, args=(module, arguments, os.fspath(folder), names, settings))
        process.start()
        end_if_hanging(process, seconds)
        status = -9 if process.exitcode is None else process.exitcode
        out, err = ((folder / name).read_text("utf-8") for name in names)
        return Finished(status, out, err)

    return run


def end_if_hanging(process: BaseProcess, seconds: float) -> None:
    """Wait for a process to end, and kill it once it has computed for so long, or has existed five times as long."""
    last = time.monotonic() + 5 * seconds
    while process.is_alive():
        process.join(1)
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            used = psutil.Process(process.pid).cpu_times()
            if used.user + used.system > seconds or time.monotonic() > last:
                process.kill()


@pytest.fixture(scope="session")
def spawn() -> Callable[..., BaseProcess]:
    """Starts ``python -m harness ARGUMENTS`` in a process of its own, forked from one that has imported everything."""
    context = warm_context()

    def start(
        *arguments: str, folder: Path, environment: Mapping[str, str] | None = None, file_limit: int | None = None
    ) -> BaseProcess:
        settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **(environment or {})}
        process = context.Process(
            target=run_quietly, args=([*TINY, *arguments], os.fspath(folder), settings, file_limit)
        )
        process.start()
        return process

    return start
