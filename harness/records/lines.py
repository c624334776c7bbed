"""JSON and JSON Lines on disk: whole files or none, whole lines or none, one rule for what a kill left behind."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

Row = dict[str, Any]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space, over the quota, or past the largest file allowed."""
_COMPRESSED = ".zst"


class DiskFullError(OSError):
    """No space is left; what was written before is intact."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's ways to say "no space" into one error that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                f"disk full while writing {path}; records so far are intact, free space and repeat"
            ) from error
        raise


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A draft beside ``path`` that takes its place when the block ends well, and is gone otherwise.

    Readers see the old or the new file, never a part. The draft's name holds host and process, since several machines
    may write into one folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    with writing(path):
        try:
            yield draft
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step. Numbers that JSON does not have are refused with ValueError."""
    with replaced(path) as draft:
        draft.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if there is no such file.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({_reason(error)}): remove it to have it written again") from error


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"not valid JSON: {error}"


@dataclass(frozen=True)
class FileMark:
    """What a finished file of lines held, to notice later changes.

    Args:
        lines: number of lines.
        sha256: hash of its uncompressed content, in hex.
    """

    lines: int
    sha256: str


def mark_of(path: Path) -> FileMark:
    """The mark of a file of lines, compressed or not."""
    digest, lines = hashlib.sha256(), 0
    with _opened(path) as stream:
        for line in stream:
            digest.update(line)
            lines += 1
    return FileMark(lines, digest.hexdigest())


def stored(path: Path) -> Path | None:
    """Where the lines of ``path`` lie: under this name, or compressed under ``.zst``; None if there are none."""
    packed = _packed(path)
    return path if path.is_file() else packed if packed.is_file() else None


def compress(path: Path) -> None:
    """Put a finished file's lines under ``.zst``. A kill on the way leaves the plain file, which then counts."""
    with replaced(_packed(path)) as draft, path.open("rb") as source, draft.open("wb") as target:
        zstandard.ZstdCompressor(level=9).copy_stream(source, target)
    path.unlink()


def _packed(path: Path) -> Path:
    return path.with_name(path.name + _COMPRESSED)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The uncompressed bytes."""
    place = stored(path)
    if place is None:
        raise FileNotFoundError(f"{path} is missing")
    with place.open("rb") as raw:
        if place.name.endswith(_COMPRESSED):
            with zstandard.ZstdDecompressor().stream_reader(raw) as unpacked:
                yield io.BufferedReader(unpacked)  # pyright: ignore[reportArgumentType]
        else:
            yield raw


def read_lines(path: Path, mark: FileMark | None = None) -> Iterator[Row]:
    """Rows of a JSON Lines file, compressed or not; none if it is missing. The file is never changed.

    What follows the last line break was torn by a kill and is left out.

    Args:
        path: the file's name without ``.zst``.
        mark: what the file held when it was finished.

    Raises:
        ValueError: a line is not JSON, or, at the end, the file is not what ``mark`` says.
    """
    if mark is not None and stored(path) is None:
        raise ValueError(
            f"{path} is missing; it held {mark.lines} lines when the run was done (remove its folder to make it anew)"
        )
    if stored(path) is None:
        return

    digest, count = hashlib.sha256(), 0
    with _opened(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                break
            digest.update(line)
            count = number
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}, is damaged ({_reason(error)})") from error
            yield row

    if mark is not None and (count, digest.hexdigest()) != (mark.lines, mark.sha256):
        change = f"it holds {count} lines, {mark.lines} were written" if count != mark.lines else "lines were changed"
        raise ValueError(f"{path} is not what it was when the run was done: {change}")


class Lines:
    """A JSON Lines file that is only ever appended to, by the one process that holds its folder's lock.

    Args:
        path: the file; it need not exist yet. A last line without its line break, torn by a kill, is cut off before
            the first append.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole = False

    def __iter__(self) -> Iterator[Row]:
        """All whole records so far."""
        return read_lines(self.path)

    def keep(self, belongs: Callable[[Row], bool]) -> None:
        """Drop all other records, in one step."""
        kept = [row for row in self if belongs(row)]
        with replaced(self.path) as draft:
            draft.write_bytes(_encoded(kept))
        _packed(self.path).unlink(missing_ok=True)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows at the end and wait until they are on the disk; nothing of them stays if that fails."""
        content = _encoded(rows)
        if not content:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._unpack()
        self._cut_torn_line()

        # Unbuffered: closing a buffered file would try to write once more what had just been taken back.
        with writing(self.path), self.path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                remaining = content
                while remaining:
                    remaining = remaining[file.write(remaining) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), size)
                raise

    def _unpack(self) -> None:
        """Lay the lines out plainly again: a run that was finished is to get more of them."""
        packed = _packed(self.path)
        if not packed.exists():
            return
        if not self.path.exists():
            with replaced(self.path) as draft, packed.open("rb") as source, draft.open("wb") as target:
                zstandard.ZstdDecompressor().copy_stream(source, target)
        packed.unlink()

    def _cut_torn_line(self) -> None:
        if self._whole or not self.path.exists():
            self._whole = True
            return
        with self.path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size and not _ends_a_line(file):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        self._whole = True


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of lines from scratch; use it inside `replaced`."""
    path.write_bytes(_encoded(rows))


def plain_cell(value: Any) -> Any:
    """A cell of a CSV file that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _encoded(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n" for row in rows)
