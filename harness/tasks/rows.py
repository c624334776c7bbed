"""Rows of a data set, from a local file, a URL or the hub, with columns checked."""

from __future__ import annotations

import csv
import io
import logging
import math
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from harness.json_text import parsed, parsed_object

Row = dict[str, Any]
SUFFIXES = (".csv", ".jsonl", ".json", ".parquet")
_TIMEOUT_SECONDS = 60
"""How long a server may be silent."""
_WHOLE_SECONDS = 600
"""How long a download may take as a whole: a server that sends a byte now and then is never silent."""
_MOST_BYTES = 2 * 2**30
_PART_BYTES = 2**16


@dataclass(frozen=True)
class HubData:
    """A data set on the hub: ``owner/name``, its configuration (None: the default), split and revision.

    ``files`` is a pattern of the files in it that hold the rows, where it is not divided into configurations.
    """

    id: str
    config: str | None
    split: str
    revision: str | None
    files: str | None = None

    def __str__(self) -> str:
        return f"{self.id} (split {self.split})"


def file_rows(path: str, option: str = "task.path") -> list[Row]:
    """Rows of a CSV, JSON Lines, JSON or Parquet file, at a local path or an http(s) URL.

    Args:
        path: where it lies.
        option: the setting that named it, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ConnectionError: the URL cannot be read.
        ValueError: the suffix is not one of `SUFFIXES`, or the content is not what the suffix says.
    """
    remote = urlsplit(path).scheme in ("http", "https")
    suffix = PurePosixPath(urlsplit(path).path if remote else path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{option} must end in {', '.join(SUFFIXES)}, got {path}")
    content = _download(path, option) if remote else _local(path, option)
    if suffix == ".parquet":
        return _parquet(content, path)

    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be UTF-8, found other bytes at position {error.start}") from error
    return {".csv": _csv, ".jsonl": _json_lines, ".json": _json}[suffix](text, path)


def parquet_rows(path: str) -> list[Row]:
    """Rows of a local Parquet file.

    Raises:
        ValueError: it is none.
    """
    return _parquet(Path(path).read_bytes(), path)


def _local(path: str, option: str) -> bytes:
    file = Path(path).expanduser()
    if not file.is_file():
        kind = "is a folder, wanted a file" if file.is_dir() else "does not exist"
        raise FileNotFoundError(f"{option}={path} {kind} (looked in {file.absolute().parent})")
    return file.read_bytes()


def _download(url: str, option: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as reply:
            return _content(reply, f"{option}={url}")
    except urllib.error.HTTPError as error:
        code = error.code
        error.close()
        raise ConnectionError(f"{option}={url}: the server answered {code}; give a local file instead") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(f"{option}={url} cannot be reached ({reason}); give a local file instead") from error


def _content(reply: IO[bytes], place: str) -> bytes:
    """All that a server sends, as long as it sends enough of it in time, and ends."""
    last, content = time.monotonic() + _WHOLE_SECONDS, bytearray()
    while part := reply.read1(_PART_BYTES):  # pyright: ignore[reportAttributeAccessIssue]
        content += part
        if len(content) > _MOST_BYTES:
            raise ConnectionError(f"{place} is more than {_MOST_BYTES:,} bytes; give a local file instead")
        if time.monotonic() > last:
            raise ConnectionError(
                f"{place} sent {len(content):,} bytes in {_WHOLE_SECONDS} s and has not ended; "
                "give a local file instead"
            )
    return bytes(content)


def _parquet(content: bytes, path: str) -> list[Row]:
    import pyarrow  # takes a moment to import, and is needed for these files alone
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not Parquet: {str(error).splitlines()[0]}") from error


def _csv(text: str, path: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num} is not CSV ({error})") from error
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(f"{path}: row {number} must have {len(reader.fieldnames or ())} cells, one per column")
    return rows


def _json_lines(text: str, path: str) -> list[Row]:
    # Not splitlines(): a string may hold U+2028 and its like, which end no line of a JSON Lines file.
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [parsed_object(line, f"{path} line {number}") for number, line in numbered]


def _json(text: str, path: str) -> list[Row]:
    value = parsed(text, path)
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise ValueError(f"{path} must be a JSON list of objects")
    return value


def hub_rows(data: HubData, columns: Sequence[str]) -> list[Row]:
    """Rows of a data set on the hub, through the ``datasets`` cache.

    Raises:
        ConnectionError: the hub cannot be reached, or refuses; the message says how to go on without it.
    """
    import datasets  # a second to import, and not needed for a local file

    try:
        with _quiet("huggingface_hub", "datasets"):
            files = {data.split: data.files} if data.files else None
            table = datasets.load_dataset(
                data.id, data.config, data_files=files, split=data.split, revision=data.revision
            )
    except (OSError, ValueError) as error:  # gated and unreachable sets are OSErrors, an unknown split is a ValueError
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConnectionError(
            f"cannot load {data} from the hub: {cause}; without the hub give task.path=FILE "
            f"({', '.join(SUFFIXES)}) with columns {', '.join(columns)}"
        ) from error
    return [dict(row) for row in table]


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    # The hub's client warns at every retry; the one error at the end says it all.
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_columns(rows: Sequence[Row], columns: Iterable[str], origin: str) -> None:
    """Raise ValueError unless every row has the wanted columns; the message names those found and those wanted."""
    columns = tuple(columns)
    for number, row in enumerate(rows, start=1):
        missing = [column for column in columns if column not in row]
        if missing:
            raise ValueError(
                f"{origin}: row {number} has no column {', '.join(missing)}; "
                f"found {', '.join(map(str, row)) or 'none'}; wanted {', '.join(columns)}"
            )


def text_of(row: Row, column: str, origin: str, number: int) -> str:
    """The stripped text in one cell, which must not be empty."""
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{origin}: row {number}: {column} must be a text that is not empty, got {value!r}")
    if broken := re.search(r"[\ud800-\udfff]", value):
        raise ValueError(
            f"{origin}: row {number}: {column} holds half a character, {broken[0]!r} at position {broken.start()}, "
            "that cannot be written as UTF-8"
        )
    return value.strip()


def label_of(row: Row, column: str, allowed: Sequence[int], origin: str, number: int) -> int:
    """The whole number in one cell, which must be one of those allowed; files may write it as a text."""
    value = row[column]
    if isinstance(value, bool) or str(value).strip() not in map(str, allowed):
        raise ValueError(f"{origin}: row {number}: {column} must be {', '.join(map(str, allowed))}, got {value!r}")
    return int(value)


def plain_text(value: Any) -> str:
    """A cell as text: "" for an empty one, a whole number without a decimal point, for tables often hold 2.0 for 2."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
