"""What a task is: test items, and what methods may learn from."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, get_args

from harness.data import Demonstration, Example, FitData, Offer, Pair, Split
from harness.records.keys import described
from harness.tasks.rows import Row, check_columns, file_rows
from harness.tasks.selection import SPLITS, Numbered, by_column, divide, parse_range, refuse_shared_questions

Kind = Literal["generate", "choice", "both"]
Role = Literal["source", "target", "control"]


_NUMBERS = (
    ("limit", 1, True),
    ("dev_size", 0, True),
    ("train_size", 0, True),
    ("num_samples", 1, False),
    ("max_new_tokens", 1, False),
    ("seed", 0, False),
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A set of questions. Subclasses say how to read rows and how a row becomes examples.

    Rows that name their split keep it; all other rows are split by `harness.tasks.selection.divide`. Everything that a
    method fits on comes from the training split. Rows that belong together (the questions about one document, the
    prompts of one concept) may name what they belong to in a column ``cluster``: it is what intervals and tests draw.
    Bump ``version`` by hand whenever the examples made from a row change.

    Args:
        path: a file (CSV, JSON Lines, JSON) or an http(s) URL of one; None is the task's own source.
        limit: at most so many test rows, in file order; None for all.
        rows: ``"A:B"``, only test rows A to B-1 in file order, from 0; applied before ``limit``.
        dev_size: at most so many dev rows. None: all that name this split; else half of the rows outside the test.
        train_size: at most so many training rows. None: all that are left.
        seed: seed of the split and of every other choice made here.
        temperature: at which completions are drawn; 0 is greedy.
        num_samples: completions of each test and dev item; more than one are drawn, need a temperature, and are items
            of one cluster: what counts of a question is their mean.
        max_new_tokens: length limit of a completion, in tokens.
        primary: the one metric that is tested; "" is the first one that is scored. All others get intervals alone.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind] = "generate"
    version: ClassVar[int] = 1
    raw: ClassVar[bool] = False
    """True: prompts are given to the model as they are, without chat or prompt template."""
    columns: ClassVar[tuple[str, ...]]
    """Columns that every row must have, after `convert`."""
    asks: ClassVar[str] = "question"
    """The column that holds the question."""

    path: str | None = None
    limit: int | None = None
    rows: str | None = None
    dev_size: int | None = None
    train_size: int | None = None
    seed: int = 0
    temperature: float = 0.0
    num_samples: int = 1
    max_new_tokens: int = 32
    primary: str = ""

    def source(self) -> list[Row]:
        """Rows of the task's own source, used without ``path``."""
        raise NotImplementedError

    def build(self, row: Row, index: int, split: Split) -> list[Example]:
        """The examples that one row makes; most tasks make one."""
        raise NotImplementedError

    def offers(self) -> frozenset[Offer]:
        """What methods can fit on here. Where there are pairs, there are demonstrations too."""
        return frozenset()

    def pairs(self) -> list[Pair]:
        """Contrast pairs of the training split."""
        return []

    def texts(self, role: Role) -> list[str]:
        """Texts of the training split: those to steer away from, those to steer towards, those to leave alone."""
        return []

    def labelled(self) -> list[tuple[str, str, bool]]:
        """Training prompts, a completion each, and whether it is of the wanted kind; by default both of each pair."""
        return [
            (pair.prompt, completion, is_wanted)
            for pair in self.pairs()
            for completion, is_wanted in ((pair.positive, True), (pair.negative, False))
        ]

    def demonstrations(self) -> list[Demonstration]:
        """Training texts, wanted and unwanted, with the concept they show; by default both of each pair."""
        return [
            Demonstration(pair.prompt, completion, wanted=is_wanted, group=pair.group)
            for pair in self.pairs()
            for completion, is_wanted in ((pair.positive, True), (pair.negative, False))
        ]

    def latent_examples(self) -> list[Example]:
        """One example for each group (concept) with held-out texts to look for it in; none by default.

        Its metadata hold ``texts`` (pairs of prompt and completion) and their ``categories``: "positive" for a text
        with the concept, "negative", or "hard negative" for one that only comes close.
        """
        return []

    def held_out(self) -> list[Demonstration]:
        """The same texts one by one."""
        return [
            Demonstration(prompt, completion, example.concept, category == "positive", example.group)
            for example in self.latent_examples()
            for (prompt, completion), category in zip(
                example.metadata["texts"], example.metadata["categories"], strict=True
            )
        ]

    @property
    def _offered(self) -> frozenset[Offer]:
        derived: frozenset[Offer] = frozenset({"demonstrations"})
        return self.offers() | derived if "pairs" in self.offers() else self.offers()

    @property
    def origin(self) -> str:
        """Where the rows come from, for messages."""
        return self.path or self.name

    def examples(self, split: Split) -> list[Example]:
        """The items of a split, in file order for the test split.

        Raises:
            ValueError: the split is empty.
        """
        examples = self._examples[split]
        if not examples:
            raise ValueError(self._why_empty(split))
        return list(examples)

    def limited(self, examples: Mapping[Split, list[Example]]) -> Task:
        """The same task with these examples alone, and with what can be fitted on them."""
        smaller = copy.copy(self)
        vars(smaller)["_examples"] = dict(examples)
        return smaller

    def check(self) -> None:
        """Raise for settings or data that cannot work. Reads the data, so call it before any weights load."""
        self._check_numbers()
        if self.path == "":
            raise ValueError("task.path must name a file or a URL, got ''; null is the task's own source")
        if self.rows is not None:
            parse_range(self.rows)
        self.examples("test")
        self._check_ids()

    def _check_numbers(self) -> None:
        for option, least, optional in _NUMBERS:
            value = getattr(self, option)
            if value is None and optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                also = " or null" if optional else ""
                raise ValueError(f"task.{option} must be a whole number from {least} on{also}, got {value!r}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"task.temperature must be 0 (greedy) or above, got {self.temperature}")
        if self.num_samples > 1 and (self.temperature == 0 or self.kind == "choice"):
            needed = "a task that writes" if self.kind == "choice" else "task.temperature above 0"
            raise ValueError(f"task.num_samples={self.num_samples} needs {needed}: samples would all be the same")

    def _check_ids(self) -> None:
        seen: set[str] = set()
        for example in (example for split in SPLITS for example in self._examples[split]):
            if example.id in seen:
                raise ValueError(f"{self.origin}: the id {example.id} stands more than once")
            seen.add(example.id)

    def fit_data(self, requires: frozenset[Offer]) -> FitData:
        """Only what is required, from the training split.

        Raises:
            ValueError: the task does not offer it, or has no training rows.
        """
        missing = requires - self._offered
        if missing:
            offered = ", ".join(sorted(self._offered)) or "nothing to fit on"
            raise ValueError(f"task {self.name} offers {offered}; the method needs {', '.join(sorted(missing))}")

        if requires and not self._has_training_rows():
            raise ValueError(self._why_empty("train"))
        texts = "texts" in requires
        if "pairs" in requires and not self.pairs():
            raise ValueError(f"task {self.name} makes no contrast pair from the training rows of {self.origin}")
        return FitData(
            pairs=tuple(self.pairs()) if "pairs" in requires else (),
            source=tuple(self.texts("source")) if texts else (),
            target=tuple(self.texts("target")) if texts else (),
            control=tuple(self.texts("control")) if texts else (),
            labelled=tuple(self.labelled()) if "labelled" in requires else (),
            demonstrations=tuple(self.demonstrations()) if "demonstrations" in requires else (),
            held_out=tuple(self.held_out()) if "demonstrations" in requires else (),
        )

    def fingerprint(self, splits: Sequence[Split] = SPLITS) -> str:
        """SHA-256 over what the chosen splits hold, and over what can be fitted on where ``train`` is among them."""
        # Fields at their default are left out, so that the vocabulary may grow without new keys for old data.
        content: list[object] = [[described(example) for example in self._examples[split]] for split in splits]
        if "train" in splits and self._has_training_rows():
            content.append([described(pair) for pair in self.pairs()] if "pairs" in self.offers() else [])
            content.append([self.texts(role) for role in get_args(Role)] if "texts" in self.offers() else [])
            content.append(self.labelled() if "labelled" in self.offers() else [])
            # Those made from pairs say nothing new.
            own = "demonstrations" in self.offers()
            content.append([described(shown) for shown in self.demonstrations()] if own else [])
            if held_out := self.held_out():
                content.append([described(shown) for shown in held_out])
        return self._hash(content)

    def latents_fingerprint(self) -> str:
        """SHA-256 over the demonstrations and the texts of `latent_examples`, test items apart."""
        shown = [described(text) for text in self.demonstrations()]
        return self._hash([shown, [described(example) for example in self.latent_examples()]])

    def _hash(self, content: list[object]) -> str:
        text = json.dumps([self.name, self.version, self.raw, content], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def _has_training_rows(self) -> bool:
        return bool(self._examples["train"])

    def convert(self, rows: list[Row]) -> list[Row]:
        """Rows in the task's own columns; override to read other formats too."""
        return rows

    @cached_property
    def _splits(self) -> dict[Split, list[Numbered]]:
        given = file_rows(self.path) if self.path else self.source()
        rows = self.convert(given)
        if not rows:
            raise ValueError(f"{self.origin} holds no rows")
        check_columns(rows, self.columns, self.origin)

        numbered = [Numbered(index, row, str(row[self.asks])) for index, row in enumerate(rows)]
        sizes = (self.dev_size, self.train_size)
        if any("split" in row for row in rows):
            check_columns(rows, ("split",), self.origin)
            refuse_shared_questions(given, self.asks, self.origin)  # by the rows' numbers in the file
            refuse_shared_questions(rows, self.asks, self.origin)  # forms that hold the question under another name
            return by_column(numbered, span=self.rows, limit=self.limit, sizes=sizes, origin=self.origin)
        return divide(numbered, span=self.rows, limit=self.limit, sizes=sizes, seed=self.seed)

    @cached_property
    def _examples(self) -> dict[Split, list[Example]]:
        examples: dict[Split, list[Example]] = {split: [] for split in self._splits}
        for split, rows in self._splits.items():
            for item in rows:
                for example in self._clustered(item, split):
                    examples[split] += self._samples(example, split)
        return examples

    def _samples(self, example: Example, split: Split) -> list[Example]:
        """The item once for every completion that is drawn for it; methods learn from each training item once."""
        if self.num_samples == 1 or split == "train":
            return [example]
        return [
            dataclasses.replace(example, id=f"{example.id}~{number}", cluster=example.unit)
            for number in range(self.num_samples)
        ]

    def _clustered(self, item: Numbered, split: Split) -> list[Example]:
        """The row's examples, in the cluster that it names."""
        made = self.build(item.row, item.index, split)
        cluster = str(item.row.get("cluster") or "")
        return [dataclasses.replace(example, cluster=cluster) for example in made] if cluster else made

    def _why_empty(self, split: Split) -> str:
        settings = ", ".join(
            f"{key}={value}"
            for key in ("rows", "limit", "dev_size", "train_size")
            if (value := getattr(self, key)) is not None
        )
        message = f"task {self.name} has no {split} rows in {self.origin} with {settings or 'every row in the test'}"
        advice = f"set task.limit=N or task.rows=A:B so that rows are left over, and task.{split}_size above 0"
        return message if split == "test" else f"{message}; {advice}"


def check_name(name: str) -> None:
    """Raise ValueError for a task's name that could not be part of a folder's."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,63}", name):
        raise ValueError(
            "task.name must be letters, digits and . _ + - that begin with a letter or digit, at most 64 of them, got "
            f"{name!r}"
        )
