"""Behaviours as choices between two or more options."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from harness.data import Example, Pair, Split
from harness.tasks.facts import Facts
from harness.tasks.rows import Row, check_columns, file_rows, text_of
from harness.tasks.selection import in_turn, order
from harness.tasks.task import Kind, Offer, Role, Task

FILE = Path(__file__).with_name("behaviors.jsonl")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OPTION = re.compile(r"\n[ \t]*\(([A-Z])\)[ \t]*")


@dataclass(frozen=True, kw_only=True)
class Behaviors(Task):
    """Questions with options that match a behaviour or do not; the completions compared are the options' letters.

    Several behaviours are asked in turn, so that ``limit`` keeps all of them. The options are shuffled for each item,
    by the SHA-256 of seed, question and option, so that no letter is tied to the behaviour. ``target`` is the option
    that matches.

    Pairs are (prompt, letter of the matching option, letter of the other one), each item in both orders of its options,
    so that a difference of means holds nothing of the letters themselves. Texts are the question with an option in
    words: the matching one is *target*, the other one *source*; *control* texts are questions and answers of the task
    ``facts`` (its training split), as many as there are source texts.

    A file of your own is JSON Lines with ``question``, ``matching``, ``not_matching`` (``id``, ``behavior`` and
    ``split`` optional), or of one of these published forms, where the behaviour is the file's name:

    - ``question`` with lettered options, ``answer_matching_behavior``, ``answer_not_matching_behavior``
      (Perez et al. 2022, arXiv:2212.09251; Rimsky et al. 2023, arXiv:2312.06681);
    - ``positive`` and ``negative``: the same question with lettered options, closed by the letter of the answer.

    Items of these forms may have more than two options: all are shown and compared.

    Args:
        behavior: only items of this behaviour; None for all.
        both_orders: ask every dev and test item twice, the second time with the options in reverse; the two are one
            cluster, for a model that prefers a letter answers them in opposite ways.
    """

    name: ClassVar[str] = "behaviors"
    kind: ClassVar[Kind] = "choice"
    columns: ClassVar[tuple[str, ...]] = ("question", "matching", "not_matching", "behavior")

    behavior: str | None = None
    both_orders: bool = False

    def source(self) -> list[Row]:
        """The rows that ship with the project."""
        return file_rows(str(FILE))

    def convert(self, rows: list[Row]) -> list[Row]:
        """Published forms as rows of our own, and only those of the chosen behaviour."""
        default = Path(self.origin).stem
        plain = [{"behavior": default, **self._plain(row, number)} for number, row in enumerate(rows, start=1)]
        if self.behavior is None:
            return in_turn(plain, "behavior")
        behaviors = sorted({str(row["behavior"]) for row in plain})
        if self.behavior not in behaviors:
            raise ValueError(f"task.behavior must be {', '.join(behaviors)}, got {self.behavior}")
        return [row for row in plain if row["behavior"] == self.behavior]

    def _plain(self, row: Row, number: int) -> Row:
        where = f"{self.origin}: row {number}"
        if "answer_matching_behavior" in row:
            check_columns([row], ("question", "answer_not_matching_behavior"), where)
            question, options = _options(row["question"], where)
            letters = row["answer_matching_behavior"], row["answer_not_matching_behavior"]
        elif "positive" in row:
            check_columns([row], ("positive", "negative"), where)
            question, options = _options(row["positive"], where, answered=True)
            letters = row["positive"][-3:], row["negative"][-3:]
        else:
            return row

        matching, other = (_index(letter, options, where) for letter in letters)
        others = [text for index, text in enumerate(options) if index not in (matching, other)]
        return {"question": question, "matching": options[matching], "not_matching": options[other], "others": others}

    def build(self, row: Row, index: int, split: Split) -> list[Example]:
        """The item in its own order; in the reverse one too if asked for, and always where methods learn."""
        question, matching, other = (text_of(row, column, self.origin, index + 1) for column in self.columns[:3])
        options = [matching, other, *row.get("others", ())]
        if len(set(options)) < len(options):
            raise ValueError(f"{self.origin}: row {index + 1}: two options are the same: {options}")
        options.sort(key=lambda option: order(f"{question}\n{option}", self.seed))
        name = str(row.get("id") or f"{row['behavior']}-{index:04d}")
        if self.both_orders or split == "train":
            orders = {name: options, f"{name}-reversed": options[::-1]}
            cluster = name if self.both_orders else ""
            return [self._example(own, row, listed, split, cluster) for own, listed in orders.items()]
        return [self._example(name, row, options, split)]

    def _example(self, name: str, row: Row, options: list[str], split: Split, cluster: str = "") -> Example:
        question, matching, other = (row[column].strip() for column in self.columns[:3])
        letters = tuple(f"({letter})" for letter in _LETTERS[: len(options)])
        target = options.index(matching)

        return Example(
            id=name,
            question=prompt(question, options),
            answer=letters[target],
            distractors=(letters[options.index(other)],),
            choices=letters,
            target=target,
            group=str(row["behavior"]),
            split=split,
            cluster=cluster,
            metadata={"question": question, "matching": matching, "not_matching": other},
        )

    def offers(self) -> frozenset[Offer]:
        """Pairs, texts, and labelled letters."""
        return frozenset({"pairs", "texts", "labelled"})

    def pairs(self) -> list[Pair]:
        """The matching letter against the other one."""
        return [Pair(item.question, item.answer, item.distractors[0], item.group) for item in self.examples("train")]

    def texts(self, role: Role) -> list[str]:
        """Questions with an option in words; questions and answers on plain facts as control."""
        train = self.examples("train")
        column = {"source": "not_matching", "target": "matching"}.get(role)
        if column:
            return list(dict.fromkeys(f"{item.metadata['question']}\n{item.metadata[column]}" for item in train))
        neutral = [f"{item.question}\n{item.answer}" for item in Facts(seed=self.seed).examples("train")]
        return neutral[: len(self.texts("source"))]


def prompt(question: str, options: list[str]) -> str:
    """The question with lettered options."""
    listed = "\n".join(f"({letter}) {option}" for letter, option in zip(_LETTERS, options, strict=False))
    return f"{question}\n\nOptions:\n{listed}\n\nReply with the letter of one option."


def _options(text: str, where: str, *, answered: bool = False) -> tuple[str, list[str]]:
    """The bare question and the options of a text that lists them by letter; ``answered``: a last letter follows."""
    stem, *parts = _OPTION.split(text.rstrip().removesuffix("Answer:").rstrip())
    letters, options = parts[::2], [part.strip() for part in parts[1::2]]
    if answered:
        letters, options = letters[:-1], options[:-1]
    if len(options) < 2 or "".join(letters) != _LETTERS[: len(letters)] or not all(options):
        raise ValueError(f"{where}: the question must list its options as (A), (B) …, each on its own line")
    question = stem.strip().removesuffix("Choices:").strip().removeprefix("Question:").strip()
    return question, options


def _index(letter: str, options: list[str], where: str) -> int:
    match = re.fullmatch(r"\s*\(([A-Z])\)\s*", letter)
    if match is None or _LETTERS.index(match[1]) >= len(options):
        raise ValueError(f"{where}: an answer must be the letter of an option, as (A), got {letter!r}")
    return _LETTERS.index(match[1])
