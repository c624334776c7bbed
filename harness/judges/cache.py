"""Every reply of a judge, kept in one SQLite file that parallel processes share."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.subject.digest import cache_root

_TABLE = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, prompt_hash TEXT NOT NULL, settings TEXT NOT NULL, prompt TEXT NOT NULL,
    reply TEXT NOT NULL, details TEXT NOT NULL, written REAL NOT NULL
) WITHOUT ROWID
"""
_BATCH = 500  # SQLite allows a limited number of variables in one statement


@dataclass(frozen=True)
class Call:
    """What is asked of a judge: all that decides the reply."""

    model: str
    prompt_hash: str
    prompt: str
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """SHA-256 over model, prompt version, whole prompt and settings."""
        content = json.dumps([self.model, self.prompt_hash, self.prompt, dict(self.settings)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Reply:
    """What came back, unparsed, so that a better parser can read it again. ``details`` holds tokens and the like."""

    text: str
    details: Mapping[str, Any]


class ReplyCache:
    """Replies by call.

    Write-ahead logging and a busy time-out let many processes read and write one file. Each statement opens its own
    connection, so that one cache may be used from any thread and survives a fork.

    Args:
        path: the SQLite file; None means ``judges.sqlite`` in the user's cache folder.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        """Remember where the file is; it is made at the first use."""
        self.path = Path(path).expanduser() if path else cache_root() / "judges.sqlite"
        self._ready = False

    def find(self, calls: Iterable[Call]) -> dict[str, Reply]:
        """The kept replies among these calls, by key."""
        keys = list({call.key for call in calls})
        replies: dict[str, Reply] = {}
        with self._connection() as connection:
            for start in range(0, len(keys), _BATCH):
                batch = keys[start : start + _BATCH]
                marks = ",".join("?" * len(batch))
                rows = connection.execute(f"SELECT key, reply, details FROM replies WHERE key IN ({marks})", batch)
                replies.update({key: Reply(text, json.loads(details)) for key, text, details in rows})
        return replies

    def keep(self, call: Call, reply: Reply) -> None:
        """Store one reply. The first reply to a call stays, so that repeated scorings agree."""
        self.keep_all([(call, reply)])

    def keep_all(self, replies: Iterable[tuple[Call, Reply]]) -> None:
        """Store many replies in one transaction."""
        rows = [
            (
                call.key,
                call.model,
                call.prompt_hash,
                json.dumps(dict(call.settings), sort_keys=True),
                call.prompt,
                reply.text,
                json.dumps(dict(reply.details)),
                time.time(),
            )
            for call, reply in replies
        ]

        with self._connection() as connection, connection:
            connection.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def forget(self, keys: Iterable[str]) -> None:
        """Remove replies, so that the calls are made again."""
        with self._connection() as connection, connection:
            connection.executemany("DELETE FROM replies WHERE key = ?", [(key,) for key in keys])

    def __len__(self) -> int:
        """Number of replies kept."""
        with self._connection() as connection:
            return connection.execute("SELECT count(*) FROM replies").fetchone()[0]

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        if not self._ready:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, timeout=60)) as connection:
            connection.execute("PRAGMA synchronous=NORMAL")
            if not self._ready:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(_TABLE)
                self._ready = True
            yield connection
