"""One set of generations on disk, and the lock that keeps others out while it is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.records.lines import (
    FileMark,
    Lines,
    compress,
    mark_of,
    read_json,
    read_lines,
    replaced,
    stored,
    write_json,
    write_lines,
)
from harness.records.rows import FORMAT, Selected, Trial, selected_of, selected_row, trial_of, trial_row
from harness.records.run import ARTIFACT_FILE, GENERATIONS_FILE, LATENTS_FILE, TRIALS_FILE, Cost, Receipt
from harness.scoring import RecordKind

if TYPE_CHECKING:
    from harness.steering import Artifact


@dataclass(frozen=True)
class Work:
    """What one piece of work took.

    Args:
        name: of the piece, the same whenever it is done again after a kill; those of fitting begin with "fit", those of
            a search on dev items with "dev".
        forward_tokens: tokens fed through the model.
        seconds: wall time.
        peak_memory_bytes: most memory of the process so far.
        examples: training examples seen, for a fit.
        trained_tokens: tokens learnt from in all sessions together, where the fit was a training.
    """

    name: str
    forward_tokens: int
    seconds: float
    peak_memory_bytes: int = 0
    examples: int = 0
    trained_tokens: int = 0


@dataclass(frozen=True)
class Sizes:
    """Which rows share batches. The last digits of their numbers depend on it, so it stays as it was decided first.

    Args:
        chunk: test items whose generations are made and written together.
        max_rows: rows that run at once.
        token_budget: tokens held at once.
        asked_rows: ``engine.max_rows`` as it was set when this was decided.
        asked_budget: ``engine.token_budget``, likewise.
    """

    chunk: int
    max_rows: int
    token_budget: int
    asked_rows: int | None
    asked_budget: int | None


COMPRESSED_FROM_BYTES = 1_000_000
"""Smaller files stay as they are, for people to look into."""


@dataclass(eq=False)
class GenerationStore:
    """``generations/<key>/``: ``meta.json``, the fitted artifact, trials, generations, cost and the receipt.

    Only the process that holds the folder's lock may write.

    Args:
        folder: where it lies.
    """

    folder: Path
    _trials: Lines = field(init=False, repr=False)
    _generations: Lines = field(init=False, repr=False)
    _costs: Lines = field(init=False, repr=False)
    _known_work: set[str] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Name the files; nothing is read or written yet."""
        self._trials = Lines(self.folder / TRIALS_FILE)
        self._generations = Lines(self.folder / GENERATIONS_FILE)
        self._costs = Lines(self.folder / "cost.jsonl")

    def begin(self, made_from: Mapping[str, Any]) -> None:
        """Write down what the generations are made from, once."""
        if self.meta is None:
            write_json(self.folder / "meta.json", {"format": FORMAT, "made_from": made_from, "files": {}})

    @property
    def meta(self) -> dict[str, Any] | None:
        """Format, what the generations are made from, and, once they are complete, what their files held.

        Raises:
            ValueError: it is damaged, or of a format that this version cannot read.
        """
        content = read_json(self.folder / "meta.json")
        if content is not None and content.get("format") != FORMAT:
            raise ValueError(
                f"{self.folder}: generations have format {content.get('format')!r}; this version reads format {FORMAT}"
            )
        return content

    @property
    def files(self) -> dict[str, FileMark]:
        """What the files of lines held when all was generated; empty before."""
        marks = (self.meta or {}).get("files", {})
        return {name: FileMark(**mark) for name, mark in marks.items()}

    def files_of(self, kinds: AbstractSet[RecordKind]) -> dict[str, FileMark]:
        """The same without latents that another run left beside the generations of this one."""
        return {name: mark for name, mark in self.files.items() if name != LATENTS_FILE or "latents" in kinds}

    def seal(self) -> dict[str, FileMark]:
        """Note what the files of lines hold, now that all is generated, and compress those that are large."""
        files = (GENERATIONS_FILE, TRIALS_FILE, LATENTS_FILE)
        names = [name for name in files if stored(self.folder / name) is not None]
        marks = {name: mark_of(self.folder / name) for name in names}
        content = {**(self.meta or {"format": FORMAT}), "files": {name: vars(mark) for name, mark in marks.items()}}
        write_json(self.folder / "meta.json", content)
        for name in names:
            place = self.folder / name
            if place.is_file() and place.stat().st_size >= COMPRESSED_FROM_BYTES:
                compress(place)
        return marks

    def trials(self) -> Iterator[Trial]:
        """All trials so far, in file order."""
        return (trial_of(row) for row in self._trials)

    @cached_property
    def unfinished_trials(self) -> dict[str, list[Trial]]:
        """Trials of examples without a generation, by example: what a kill interrupted. Read once, when asked for."""
        finished = {row["example_id"] for row in self._generations}
        trials: dict[str, list[Trial]] = {}
        for row in self._trials:
            if row["example_id"] not in finished:
                trials.setdefault(row["example_id"], []).append(trial_of(row))
        return trials

    def add_trials(self, trials: list[Trial], work: Work) -> None:
        """Append the trials of one round and what it took."""
        # The cost first: a kill in between leaves a cost whose work is done again and then not counted twice.
        self.add_work(work)
        self._trials.append(trial_row(trial) for trial in trials)

    def drop_trials(self, torn: set[tuple[str, int]]) -> None:
        """Remove the trials of these (example id, round) from the file: what a kill left of a round."""
        if torn:
            self._trials.keep(lambda row: (row["example_id"], row["round"]) not in torn)

    def selected(self) -> list[Selected]:
        """All generations so far, in file order."""
        return [
            selected_of(row) for row in read_lines(self.folder / GENERATIONS_FILE, self.files.get(GENERATIONS_FILE))
        ]

    def add_selected(self, selected: list[Selected]) -> None:
        """Append the generations that stand for some examples."""
        self._generations.append(selected_row(item) for item in selected)

    def drop_selected(self, examples: set[str]) -> None:
        """Remove the generations that stand for these examples: what a kill left of a chunk."""
        if examples:
            self._generations.keep(lambda row: row["example_id"] not in examples)

    def latents(self) -> list[Selected]:
        """What the method read in the texts of each concept, if it was asked to; empty before."""
        return [selected_of(row) for row in read_lines(self.folder / LATENTS_FILE, self.files.get(LATENTS_FILE))]

    def save_latents(self, latents: list[Selected]) -> None:
        """Write them all in one step."""
        with replaced(self.folder / LATENTS_FILE) as draft:
            write_lines(draft, (selected_row(item) for item in latents))

    def add_work(self, work: Work) -> None:
        """Append what a piece of work took, unless it was counted before a kill made it necessary again."""
        if self._known_work is None:
            self._known_work = {row["name"] for row in self._costs}
        if work.name not in self._known_work:
            self._known_work.add(work.name)
            self._costs.append([vars(work)])

    def work(self) -> list[Work]:
        """Every piece of work so far."""
        return [Work(**row) for row in self._costs]

    def cost(self) -> Cost:
        """Work of all sessions so far."""
        rows = list(self._costs)
        fits = [row for row in rows if row["name"].startswith("fit")]
        return Cost(
            trials=sum(row["trial"] >= 0 for row in self._trials),
            forward_tokens=sum(row["forward_tokens"] for row in rows),
            seconds=sum(row["seconds"] for row in rows),
            peak_memory_bytes=max((row["peak_memory_bytes"] for row in rows), default=0),
            fit_examples=sum(row["examples"] for row in fits),
            fit_tokens=sum(row["trained_tokens"] or row["forward_tokens"] for row in fits),
            fit_seconds=sum(row["seconds"] for row in fits),
        )

    @property
    def artifact(self) -> Artifact | None:
        """The fitted tensors, if they were saved before."""
        from safetensors.torch import load_file  # imports torch, which readers of scores need not wait for

        path = self.folder / ARTIFACT_FILE
        return load_file(path) if path.exists() else None

    def save_artifact(self, artifact: Artifact) -> None:
        """Save the fitted tensors in one step."""
        from safetensors.torch import save_file

        tensors = {name: value.detach().cpu().contiguous() for name, value in artifact.items()}
        with replaced(self.folder / ARTIFACT_FILE) as draft:
            save_file(tensors, draft)

    @property
    def prepared(self) -> dict[str, Any]:
        """What a search decided once for all test items; empty if it decides for each."""
        return read_json(self.folder / "prepared.json") or {}

    def save_prepared(self, prepared: Mapping[str, Any]) -> None:
        """Keep what a search decided once."""
        if prepared:
            write_json(self.folder / "prepared.json", dict(prepared))

    def note(self, name: str) -> Any:
        """What a search wrote down under this name; None before."""
        return read_json(self.folder / f"{name}.json")

    def save_note(self, name: str, content: Any) -> None:
        """Keep what a search found out, beside what it decided."""
        write_json(self.folder / f"{name}.json", content)

    @property
    def sizes(self) -> Sizes | None:
        """How large chunks and batches are, as it was decided at the first start; None before."""
        content = read_json(self.folder / "sizes.json")
        return None if content is None else Sizes(**content)

    def save_sizes(self, sizes: Sizes) -> None:
        """Keep how large chunks and batches are, so that a restart makes the same ones."""
        write_json(self.folder / "sizes.json", vars(sizes))

    @property
    def receipt(self) -> Receipt | None:
        """Proof of steering, if it was measured before."""
        content = read_json(self.folder / "receipt.json")
        return None if content is None else Receipt.model_validate(content)

    def save_receipt(self, receipt: Receipt) -> None:
        """Keep the proof of steering."""
        write_json(self.folder / "receipt.json", receipt.model_dump(mode="json"))
