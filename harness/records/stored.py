"""A run as it lies on disk: its record and the lines beside it, read and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.data import Example
from harness.records.lines import read_lines
from harness.records.rows import Selected, Trial, score_of, selected_of, trial_of
from harness.records.run import GENERATIONS_FILE, LATENTS_FILE, RUN_FILE, SCORES_FILE, TRIALS_FILE, RunRecord
from harness.scoring import Score, audited_score


@dataclass(frozen=True)
class StoredRun:
    """A run with the lines that lie beside its record.

    Args:
        path: the run's folder.
        record: its ``run.json``.
        scores: value (None where unscored) by metric and example id.
        selected: the generation that stands for each example, by its id, in file order; then the latents by concept.
        audits: what a second judge's verdict makes of a score, by metric and example id, where it gave one.
    """

    path: Path
    record: RunRecord
    scores: Mapping[str, Mapping[str, float | None]]
    selected: Mapping[str, Selected]
    audits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name, unique in its output folder."""
        return self.record.name

    @cached_property
    def counted(self) -> dict[str, Example]:
        """The examples that were scored, fewer than were generated on a subset; all, if nothing was scored."""
        scored = {example for column in self.scores.values() for example in column}
        examples = {name: selected.record.example for name, selected in self.selected.items()}
        return {name: example for name, example in examples.items() if name in scored or not scored}

    def unit(self, example: str) -> str:
        """What intervals and tests draw for an example: its cluster, or itself."""
        return self.selected[example].record.example.unit if example in self.selected else example

    @property
    def generations_folder(self) -> Path:
        """Where generations and trials lie."""
        return self.path / (self.record.generations or "../generations/none")

    def trials(self) -> Iterator[Trial]:
        """The search's trials in file order; none for a run without a search."""
        return (trial_of(row) for row in self.trial_rows())

    def trial_rows(self) -> Iterator[Mapping[str, Any]]:
        """The same as they stand on disk, for whoever needs only two numbers of each."""
        return read_lines(self.generations_folder / TRIALS_FILE, self.record.files.get(TRIALS_FILE))

    def score_rows(self) -> Iterator[Score]:
        """Every score with its details."""
        rows = read_lines(self.path / SCORES_FILE, self.record.files.get(SCORES_FILE))
        return (score_of(row) for row in rows)


def read_run(folder: Path) -> StoredRun:
    """Read a run's folder; scores and generations may be missing from one that failed.

    Raises:
        ValueError: there is no valid ``run.json``, or a file is damaged or not what it was when the run was done.
    """
    record = RunRecord.read(folder)
    for name in ("task", "evaluator", "scorer"):
        if not isinstance(record.config.get(name) or {}, Mapping):
            raise ValueError(f"{folder / RUN_FILE}: config.{name} must be a table, got {record.config[name]!r}")
    scores, audits = _scores(folder, record)
    return StoredRun(folder, record, scores, _selected(folder, record), audits)


def _scores(folder: Path, record: RunRecord) -> tuple[dict[str, dict[str, float | None]], dict[str, dict[str, float]]]:
    """The scores by metric and example id, and likewise what a second judge made of them."""
    scores: dict[str, dict[str, float | None]] = {}
    audits: dict[str, dict[str, float]] = {}

    for row in read_lines(folder / SCORES_FILE, record.files.get(SCORES_FILE)):
        try:
            metric, example, value = row["metric"], row["example_id"], row["value"]
            if value is not None and not isinstance(value, int | float):
                raise TypeError(f"value is {value!r}")
            scores.setdefault(metric, {})[example] = value
            audit = audited_score(row.get("details") or {})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{folder}: a line of {SCORES_FILE} is not a score ({error!r})") from error

        if audit is not None:
            audits.setdefault(metric, {})[example] = audit

    return scores, audits


def _selected(folder: Path, record: RunRecord) -> dict[str, Selected]:
    """What stands for each example, by its id: generations in file order, then latents."""
    if record.generations is None:
        return {}
    names = [GENERATIONS_FILE]
    # Another run may have left latents beside the generations that this one never asked for.
    if LATENTS_FILE in record.files:
        names.append(LATENTS_FILE)

    selected: dict[str, Selected] = {}
    for name in names:
        for row in read_lines(folder / record.generations / name, record.files.get(name)):
            try:
                chosen = selected_of(row)
                for text in ("example_id", "question", "text"):
                    if not isinstance(row[text], str):
                        raise TypeError(f"{text} is {row[text]!r}")
                selected[chosen.record.example.id] = chosen
            except (KeyError, TypeError) as error:
                raise ValueError(f"{folder}: a line of {name} is not a generation ({error!r})") from error

    return selected
