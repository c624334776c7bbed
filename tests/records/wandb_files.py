"""Reads W&B's offline files: a log of protocol buffers in LevelDB's block format."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """One offline run as W&B's own format holds it."""

    folder: Path
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    artifacts: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    def table(self, name: str) -> list[dict[str, Any]]:
        """A logged table as one mapping per row."""
        stored = json.loads((self.folder / "files" / self.summary[name]["path"]).read_text())
        return [dict(zip(stored["columns"], row, strict=True)) for row in stored["data"]]


def read_offline(out: Path) -> list[OfflineRun]:
    """All offline runs that were written below ``out/wandb``, by id."""
    files = sorted(out.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stem)
    return [_read(path) for path in files]


def _read(path: Path) -> OfflineRun:
    offline = OfflineRun(path.parent)
    for content in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            offline.run = record.run
            _update(offline.config, record.run.config.update)
        elif kind == "config":
            _update(offline.config, record.config.update)
        elif kind == "summary":
            _update(offline.summary, record.summary.update)
        elif kind == "history":
            offline.history.append(_update({}, record.history.item))
        elif kind == "artifact":
            offline.artifacts[record.artifact.type] = record.artifact
        elif kind == "exit":
            offline.exit_code = record.exit.exit_code
    return offline


def _update(target: dict[str, Any], items: Any) -> dict[str, Any]:
    for item in items:
        *path, last = item.nested_key or [item.key]
        place = target
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return target


def _records(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    position, parts = HEADER, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += HEADER
        parts += data[position : position + length]
        position += length
        if kind in (FULL, LAST):
            yield parts
            parts = b""
