"""AMX that is announced and trapped: tried in a real child process that a real signal ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.subject import amx

WITH_AMX = "processor : 0\nmodel name : Some CPU\nflags : fpu avx512f amx_bf16 amx_tile\n"
WITHOUT = "processor : 0\nmodel name : Some CPU\nflags : fpu avx512f avx512_bf16\n"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(amx.VARIABLE, "to be put back")  # so that the variable is restored after the test
    monkeypatch.delenv(amx.VARIABLE)
    path = tmp_path / "cpuinfo"
    path.write_text(WITH_AMX)
    return path


def dies() -> bool:
    script = f"import os, signal; os.kill(os.getpid(), signal.{signal.SIGILL.name})"
    return subprocess.run([sys.executable, "-c", script], check=False).returncode >= 0


def test_a_trap_sets_the_variable_with_one_line(cpuinfo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert amx.avoid_trapped_amx(cpuinfo, dies)
    assert os.environ[amx.VARIABLE] == amx.SAFE
    assert capsys.readouterr().err == f"{amx.NOTICE}\n"


def test_a_host_is_tried_once(cpuinfo: Path) -> None:
    assert amx.is_trapped(cpuinfo, dies)

    def never() -> bool:
        raise AssertionError("tried twice")

    assert amx.is_trapped(cpuinfo, never)


@pytest.mark.parametrize("note", ["", "[]", '{"host": {}}', json.dumps({"host": "elsewhere", "trapped": False})])
def test_a_damaged_note_or_one_of_another_host_is_not_believed(cpuinfo: Path, note: str) -> None:
    path = Path(os.environ["HARNESS_CACHE"]) / "amx.json"
    path.parent.mkdir(parents=True)
    path.write_text(note)
    assert amx.is_trapped(cpuinfo, dies)


def test_working_units_and_other_processors_are_left_alone(cpuinfo: Path, tmp_path: Path) -> None:
    assert not amx.avoid_trapped_amx(cpuinfo, lambda: True)
    assert not amx.avoid_trapped_amx(tmp_path / "absent", dies)
    cpuinfo.write_text(WITHOUT)
    assert not amx.avoid_trapped_amx(cpuinfo, dies)
    assert amx.VARIABLE not in os.environ


def test_what_the_user_set_stays(cpuinfo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(amx.VARIABLE, "AVX2")
    assert not amx.avoid_trapped_amx(cpuinfo, dies)
    assert os.environ[amx.VARIABLE] == "AVX2"


def test_the_products_run_where_the_tests_run() -> None:
    # On a machine that traps AMX the session has set the variable, and the child is tried without it.
    assert amx.products_survive() or os.environ[amx.VARIABLE] == amx.SAFE
