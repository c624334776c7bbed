"""Records on disk: whole lines or none, one writer at a time."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from harness.records.identity import key_of

from harness.records import store
from harness.records.store import DiskFullError, GenerationStore, Lines, locked, read_json, write_json


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "new" / "a.jsonl")
    assert list(lines) == []
    lines.append([{"text": "naïve\u2028 ☃", "n": 1}, {"n": 2}])
    lines.append([])
    lines.append([{"n": 3}])
    assert [row["n"] for row in Lines(lines.path)] == [1, 2, 3]
    assert next(iter(lines))["text"] == "naïve\u2028 ☃"


@pytest.mark.parametrize("torn", [b'{"n": 3', b'{"n": 3}', b'{"t": "\xc3'])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n' + torn)
    lines = Lines(path)
    assert [row["n"] for row in lines] == [1, 2]
    lines.append([{"n": 4}])
    assert path.read_bytes() == b'{"n": 1}\n{"n": 2}\n{"n": 4}\n'


def test_a_file_of_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n"')
    assert list(Lines(path)) == []
    assert path.read_bytes() == b""


def test_keep_rewrites_in_one_step(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "a.jsonl")
    lines.append({"n": n} for n in range(5))
    lines.keep(lambda row: row["n"] % 2 == 0)
    assert [row["n"] for row in lines] == [0, 2, 4]
    assert os.listdir(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    lines = Lines(tmp_path / "a.jsonl")
    lines.append([{"n": 1}])
    before = lines.path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(store.os, "fsync", fail)
        with pytest.raises(DiskFullError, match=r"disk full while writing .*a\.jsonl"):
            lines.append([{"n": 2}])
    assert lines.path.read_bytes() == before
    lines.append([{"n": 3}])
    assert [row["n"] for row in Lines(lines.path)] == [1, 3]


def test_numbers_that_are_none_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="Out of range float"):
        lines.append([{"n": 1}, {"n": float("nan")}])
    assert not lines.path.exists()


def test_json_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    assert read_json(path) is None
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"a": float("inf")})
    assert read_json(path) == {"a": 1}
    assert os.listdir(path.parent) == ["run.json"]


def test_the_folder_keeps_its_identity_artifact_receipt_and_costs(tmp_path: Path) -> None:
    made_from = {"seed": 1, "method": {"strength": 0.1, "layers": [1, 2], "none": None}}
    first = GenerationStore(tmp_path, made_from)
    assert first.artifact is None
    assert first.receipt is None
    first.save_artifact({"v": torch.arange(6.0).view(2, 3).T})
    first.save_receipt({"sites_hit": 2})
    first.costs.append([{"trials": 2, "peak_memory_bytes": 5}, {"trials": 3, "peak_memory_bytes": 4}])
    again = GenerationStore(tmp_path, {"other": True})
    assert key_of(read_json(tmp_path / "meta.json")) == key_of(made_from)
    assert torch.equal(again.artifact["v"], torch.arange(6.0).view(2, 3).T)
    assert again.receipt == {"sites_hit": 2}
    assert again.cost() == {"trials": 5, "peak_memory_bytes": 5}


def test_a_held_folder_is_refused_after_the_wait_and_free_afterwards(tmp_path: Path) -> None:
    refused = pytest.raises(RuntimeError, match="another run is working on")
    with locked(tmp_path, 1), refused, locked(tmp_path, 0.05):
        pytest.fail("two holders at once")
    with locked(tmp_path, 0):
        pass


def test_the_lock_is_released_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path, 0):
        raise KeyError
    with locked(tmp_path, 0):
        pass


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


def test_lines_are_json_for_any_reader(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "a.jsonl")
    lines.append([{"text": 'a "quoted"\nline'}])
    (line,) = lines.path.read_text().splitlines()
    assert json.loads(line) == {"text": 'a "quoted"\nline'}
