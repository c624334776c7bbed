"""The reply cache: shared by processes, nothing lost, nothing overwritten."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

from harness.judges.cache import Call, Reply, ReplyCache

CALL = Call("model", "abcd1234", "the whole prompt", {"temperature": 0.0})
WRITER = """
import sys
from harness.judges.cache import Call, Reply, ReplyCache
cache = ReplyCache(sys.argv[1])
for number in range(100):
    cache.keep(Call("model", "hash", f"prompt {number}", {}), Reply(f"{number} from {sys.argv[2]}", {"tokens": number}))
    cache.find([Call("model", "hash", f"prompt {n}", {}) for n in range(number)])
"""


def test_keeps_and_finds(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "deep" / "c.sqlite")
    assert cache.find([CALL]) == {}
    cache.keep(CALL, Reply("A", {"tokens": 3}))
    assert ReplyCache(cache.path).find([CALL]) == {CALL.key: Reply("A", {"tokens": 3})}


def test_the_key_hangs_on_everything_that_decides_the_reply() -> None:
    changes = [{"model": "other"}, {"prompt_hash": "ffff0000"}, {"prompt": "x"}, {"settings": {"temperature": 1.0}}]
    keys = {dataclasses.replace(CALL, **change).key for change in changes}
    assert len(keys | {CALL.key}) == 5


def test_the_first_reply_stays(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "c.sqlite")
    cache.keep(CALL, Reply("A", {}))
    cache.keep(CALL, Reply("B", {}))
    assert cache.find([CALL])[CALL.key].text == "A"
    assert len(cache) == 1


def test_more_calls_than_one_statement_may_hold(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "c.sqlite")
    calls = [dataclasses.replace(CALL, prompt=str(number)) for number in range(1203)]
    cache.keep_all((call, Reply("A", {})) for call in calls)
    assert len(cache.find(calls)) == len(cache) == 1203


def test_two_processes_share_one_file(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    writers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WRITER, str(path), name], stderr=subprocess.PIPE, text=True
        )
        for name in ("first", "second")
    ]
    errors = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], errors

    cache = ReplyCache(path)
    calls = [Call("model", "hash", f"prompt {number}", {}) for number in range(100)]
    replies = cache.find(calls)
    assert len(cache) == len(replies) == 100
    for number, call in enumerate(calls):
        assert replies[call.key].text.startswith(f"{number} from ")
        assert replies[call.key].details == {"tokens": number}
