"""Locks over threads, processes and, as far as files tell, machines."""

import json
import multiprocessing
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from harness import progress
from harness.records import locks
from harness.records.locks import Holder, holder_of, locked


def write_note(folder: Path, **changes: object) -> None:
    content = {"host": socket.gethostname(), "process": os.getpid(), "heartbeat": time.time(), **changes}
    (folder / ".holder.json").write_text(json.dumps(content))


def test_a_holder_writes_down_who_it_is(tmp_path: Path) -> None:
    with locked(tmp_path, 1):
        holder = holder_of(tmp_path)
        assert holder is not None
        assert (holder.host, holder.process) == (socket.gethostname(), os.getpid())
    assert holder_of(tmp_path) is None


def test_the_heart_beats_while_the_lock_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.05)
    with locked(tmp_path, 1):
        first = holder_of(tmp_path)
        time.sleep(0.4)
        assert holder_of(tmp_path).heartbeat > first.heartbeat


def test_a_holder_without_a_heartbeat_is_waited_for_and_then_refused(tmp_path: Path) -> None:
    waits: list[str] = []
    with locked(tmp_path, 1):
        write_note(tmp_path, process=99999, heartbeat=0.0)
        refused = pytest.raises(RuntimeError, match=r"process 99999 on .+ is working on .+ no sign of life for 0.05 s")
        with refused, locked(tmp_path, 0.05, on_wait=lambda: waits.append("waits")):
            pytest.fail("two holders at once")
    assert waits == ["waits"]
    with locked(tmp_path, 0):
        pass


def test_a_wait_says_who_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "HEARTBEAT_SECONDS", 0.02)
    with locked(tmp_path, 1):
        write_note(tmp_path, process=99999, heartbeat=0.0)
        with pytest.raises(RuntimeError), locked(tmp_path, 0.3):
            pytest.fail("two holders at once")
    printed = " ".join(capsys.readouterr().err.split())
    assert f"wait for process 99999 on {socket.gethostname()}, which works on" in printed


def test_a_live_holder_on_another_machine_is_respected_without_its_system_lock(tmp_path: Path) -> None:
    """On some network file systems a lock holds on one machine only."""
    write_note(tmp_path, host="elsewhere", process=7)
    entered = threading.Event()

    def enter() -> None:
        with locked(tmp_path, 0.05):
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.5), "its heart beats, so it is waited for, longer than for a silent one"
    write_note(tmp_path, host="elsewhere", process=7, heartbeat=0.0)
    assert entered.wait(10)
    thread.join()


def test_a_dead_holder_on_another_machine_is_not_waited_for(tmp_path: Path) -> None:
    write_note(tmp_path, host="elsewhere", process=7, heartbeat=time.time() - locks.STALE_SECONDS - 1)
    with locked(tmp_path, 0):
        assert holder_of(tmp_path).process == os.getpid()


def test_a_damaged_note_is_no_holder(tmp_path: Path) -> None:
    (tmp_path / ".holder.json").write_text("{")
    assert holder_of(tmp_path) is None
    with locked(tmp_path, 0):
        pass


def test_who_counts_as_another() -> None:
    now = time.time()
    assert Holder("elsewhere", 1, now).is_other
    assert not Holder("elsewhere", 1, now - 2 * locks.STALE_SECONDS).is_other
    assert not Holder(socket.gethostname(), os.getpid(), now).is_other


def test_the_lock_is_released_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path, 0):
        raise KeyError
    with locked(tmp_path, 0):
        pass


def _hold(folder: Path, held: object) -> None:
    with locked(folder, 0):
        held.set()
        time.sleep(600)


def test_a_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    held = context.Event()
    child = context.Process(target=_hold, args=(tmp_path, held))
    child.start()
    assert held.wait(120)
    child.kill()
    child.join(30)
    with locked(tmp_path, 30):
        assert holder_of(tmp_path).process == os.getpid()


def test_a_waiting_run_gets_the_folder_in_the_end(tmp_path: Path) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with locked(tmp_path, 60):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(tmp_path, 0):
        thread.start()
        waiting.wait()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
