"""Which rows are asked, and which may be learned from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple, get_args

from harness.data import Split
from harness.tasks.rows import Row

SPLITS: tuple[Split, ...] = get_args(Split)


class Numbered(NamedTuple):
    """A row with its position among those that are asked, from 0, and what it asks."""

    index: int
    row: Row
    question: str

    @property
    def place(self) -> str:
        """What decides its place in a random order: the question without regard to case and white space."""
        return " ".join(self.question.casefold().split())

    @property
    def same(self) -> str:
        """Equal for questions of the same letters and digits, whatever stands between them."""
        return letters_and_digits(self.question)


def letters_and_digits(text: str) -> str:
    """A text's letters and digits alone, in lower case; the text itself, if it has none."""
    return "".join(character for character in text.casefold() if character.isalnum()) or text.strip()


def parse_range(rows: str) -> slice:
    """``"A:B"`` as rows A to B-1, counted from 0; either end may be left out.

    Raises:
        ValueError: the text is not a range, or the range is empty.
    """
    match = re.fullmatch(r"(\d*):(\d*)", str(rows).strip())
    if match is None:
        raise ValueError(f'task.rows must look like "A:B" with whole numbers from 0, got {rows!r}')
    start, stop = (int(end) if end else None for end in match.groups())
    if stop is not None and stop <= (start or 0):
        raise ValueError(f"task.rows={rows} is empty: the second number must be above the first")
    return slice(start, stop)


def chosen(rows: Sequence[Numbered], span: str | None, limit: int | None) -> list[Numbered]:
    """The rows of a range, and of these the first ``limit``."""
    kept = rows[parse_range(span)] if span is not None else rows
    return list(kept[:limit])


def in_turn(rows: Sequence[Row], column: str) -> list[Row]:
    """The rows of each split dealt out by a column: the first of each value, then the second of each, and so on."""
    splits: dict[object, dict[object, list[Row]]] = {}
    for row in rows:
        splits.setdefault(row.get("split"), {}).setdefault(row[column], []).append(row)
    dealt = (hand for groups in splits.values() for hand in zip_longest(*groups.values()))
    return [row for hand in dealt for row in hand if row is not None]


def order(text: str, seed: int) -> str:
    """A key that sorts texts in an order that looks random and depends on text and seed alone."""
    return hashlib.sha256(f"{seed}\n{text}".encode()).hexdigest()


def divide(
    rows: Sequence[Numbered], *, span: str | None, limit: int | None, sizes: tuple[int | None, int | None], seed: int
) -> dict[Split, list[Numbered]]:
    """Split rows that come in one piece: test rows in file order, dev and train rows from all others.

    The other rows are ordered by the SHA-256 of their question, and rows whose question also stands among the test rows
    (in the same letters and digits) are left out, so that no question is both learned from and asked.

    Args:
        rows: every row.
        span: range of test rows, None for all.
        limit: at most so many test rows.
        sizes: at most so many dev and train rows; None is half of the other rows for dev, all that is left for train.
        seed: changes the order.
    """
    test = chosen(rows, span, limit)
    taken = {item.index for item in test}
    others = _asking_else([item for item in rows if item.index not in taken], test)
    others.sort(key=lambda item: (order(item.place, seed), item.index))
    dev = others[: len(others) // 2 if sizes[0] is None else sizes[0]]
    train = _asking_else(others[len(dev) :], dev)
    return {"test": test, "dev": dev, "train": train[: sizes[1]]}


def _asking_else(rows: Sequence[Numbered], others: Sequence[Numbered]) -> list[Numbered]:
    asked = {item.same for item in others}
    return [item for item in rows if item.same not in asked]


def by_column(
    rows: Sequence[Numbered], *, span: str | None, limit: int | None, sizes: tuple[int | None, int | None], origin: str
) -> dict[Split, list[Numbered]]:
    """Split rows that say in a ``split`` column where they belong. Range and limit apply to the test rows."""
    by_split: dict[Split, list[Numbered]] = {split: [] for split in SPLITS}
    for item in rows:
        split = item.row["split"]
        if split not in by_split:
            raise ValueError(f"{origin}: row {item.index + 1}: split must be {', '.join(SPLITS)}, got {split!r}")
        by_split[split].append(item)

    return {
        "test": chosen(by_split["test"], span, limit),
        "dev": by_split["dev"][: sizes[0]],
        "train": by_split["train"][: sizes[1]],
    }


def refuse_shared_questions(rows: Sequence[Row], column: str, origin: str) -> None:
    """Raise ValueError if rows that name their split ask one question in two splits, naming these rows.

    Args:
        rows: rows as they stand in the file; those without the column or a split are passed over.
        column: the column that holds the question.
        origin: the file, for the message.
    """
    asked: dict[str, dict[str, list[int]]] = {}
    for number, row in enumerate(rows, start=1):
        if isinstance(row.get(column), str) and row.get("split") in SPLITS:
            splits = asked.setdefault(letters_and_digits(row[column]), {})
            splits.setdefault(row["split"], []).append(number)

    shared = [splits for splits in asked.values() if len(splits) > 1]
    if shared:
        named = [f"row {numbers[0]} ({split})" for split, numbers in shared[0].items()]
        question = rows[next(iter(shared[0].values()))[0] - 1][column]
        more = f"; {len(shared)} questions in all" if len(shared) > 1 else ""
        raise ValueError(
            f"{origin}: {' and '.join(named)} ask the same question, {question[:60]!r}{more}; what is tested must not "
            "be learned from, so each question belongs to one split"
        )
