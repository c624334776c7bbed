"""A run as it stands in ``run.json``: one type, one writer, one reader."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.data import Example
from harness.records.lines import FileMark, read_json, read_lines, write_json
from harness.records.rows import FORMAT, Selected, Trial, score_of, selected_of, trial_of
from harness.scoring import Estimate, Evaluator, Metric, MetricKind, Score, audited_score

RUN_FILE, SCORES_FILE, GENERATIONS_FILE, TRIALS_FILE = "run.json", "scores.jsonl", "generations.jsonl", "trials.jsonl"
LATENTS_FILE, ARTIFACT_FILE = "latents.jsonl", "artifact.safetensors"
Status = Literal["running", "done", "failed"]


def printable(text: str) -> str:
    """Text from somebody's file, safe to print: what steers a terminal or breaks a line becomes a blank."""
    return "".join(character if character.isprintable() else " " for character in text)


class _Part(BaseModel):
    """A part of ``run.json``. Names that a later version may have added are left out when read."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Labels(_Part):
    """Which YAML each choice was taken from, and the seed; what tables and names show."""

    method: str = ""
    search: str = ""
    control: str = ""
    task: str = ""
    model: str = ""
    judge: str = ""
    scorer: str = ""
    objective: str = ""
    protocol: str = ""
    seed: str = ""

    def shown(self, axis: str) -> str:
        """The label of one axis, "" if it does not apply; always one line that steers no terminal."""
        label = printable(str(getattr(self, axis)))
        return "" if label == "none" else label


class MetricNote(_Part):
    """A metric as an evaluator declared it; a bound that is None is infinite."""

    name: str
    higher_is_better: bool
    low: float | None
    high: float | None
    kind: MetricKind = "mean"
    beside: str = ""

    def metric(self) -> Metric:
        """The metric."""
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return Metric(self.name, self.higher_is_better, low, high, self.kind, self.beside)


class EvaluatorNote(_Part):
    """An evaluator that scored the run.

    Args:
        version: its version.
        metrics: in its own order; the first one is its headline.
        judged: its values hang on a judge.
    """

    version: int
    metrics: tuple[MetricNote, ...]
    judged: bool

    @classmethod
    def of(cls, evaluator: Evaluator) -> Self:
        """The note of an evaluator."""
        metrics = tuple(
            MetricNote(
                name=metric.name,
                higher_is_better=metric.higher_is_better,
                low=metric.low if math.isfinite(metric.low) else None,
                high=metric.high if math.isfinite(metric.high) else None,
                kind=metric.kind,
                beside=metric.beside,
            )
            for metric in evaluator.metrics
        )
        return cls(version=evaluator.version, metrics=metrics, judged="judge" in evaluator.needs)


class Cost(_Part):
    """Work of all sessions together. What a kill wasted is not counted, so a resumed run costs what a whole one does.

    Args:
        trials: parameter sets that were tried, summed over examples.
        forward_tokens: tokens fed through the model.
        seconds: wall time.
        peak_memory_bytes: most memory that any session used.
        fit_examples, fit_tokens, fit_seconds: the share of fitting the method; each visit of a training counts.
        judge_calls: requests to a judge; answers from its cache are none.
        judge_cost: US dollars; None if the price is unknown.
    """

    trials: int = 0
    forward_tokens: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    fit_examples: int = 0
    fit_tokens: int = 0
    fit_seconds: float = 0.0
    judge_calls: int = 0
    judge_cost: float | None = 0.0


class Provenance(_Part):
    """Where the numbers come from. ``imported_from`` names the file, with its hash, of texts that other code wrote."""

    commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    device: str = ""
    dtype: str = ""
    model_identity: str = ""
    num_layers: int | None = None
    width: int | None = None
    method_version: int = 1
    task_fingerprint: str = ""
    command: str = ""
    scored_again_from: str | None = None
    imported_from: str | None = None


class SiteChange(_Part):
    """How far one site's states were moved, over the tokens that were edited."""

    relative_change: float
    tokens_prompt: int
    tokens_completion: int


class Receipt(_Part):
    """Proof of steering, see `harness.receipt`.

    Args:
        rows: rows that were measured.
        sites_hit: sites at which states changed.
        sites_missed: sites that no pass came by.
        sites: what was changed, by site.
        kl_mean, kl_max: divergence of the next-token distribution at the prompt's end, steered from un-steered, nats.
        branching, branching_unsteered: among how many tokens the model wavers there, the exponential of the entropy,
            steered and not; None in records that are older.
        of_unselected_trials: the un-steered text was selected everywhere, so what was tried instead was measured.
        null: the parameters are those at which the method changes nothing, so nothing was to be proved.
    """

    rows: int
    sites_hit: int
    sites_missed: tuple[str, ...]
    sites: dict[str, SiteChange]
    kl_mean: float
    kl_max: float
    branching: float | None = None
    branching_unsteered: float | None = None
    of_unselected_trials: bool = False
    null: bool = False


class SearchNote(_Part):
    """What the search looked at, and what it maximised.

    Args:
        access: what it was shown besides the question.
        optimises: metrics of its objective.
    """

    access: tuple[str, ...] = ()
    optimises: tuple[str, ...] = ()


class Subset(_Part):
    """Which examples count, where not all do.

    Args:
        name: of the rule.
        decided_by: everything that decided it; part of the run's key.
        ids: the examples that count.
        of: how many there were.
    """

    name: str
    decided_by: tuple[Any, ...]
    ids: tuple[str, ...]
    of: int


class RunRecord(_Part):
    """Everything that ``run.json`` says. `read` and `write` are the only ways in and out.

    Args:
        format: of this file and of the lines beside it.
        key: of the run, see `harness.records.keys`.
        entry: key of the leaderboard's line that it belongs to.
        name: of its folder.
        created: when its scoring began, in UTC.
        status: ``done`` once everything is written.
        error: why it failed.
        sweep: name of the sweep that it belongs to.
        overrides: what the command line set for it.
        config: the composed configuration.
        labels: which YAML each choice was taken from.
        access: what method, search and control were shown besides the question.
        oracle: whether the answers of test items were among it.
        searched: what the search saw and maximised; None if it had no objective.
        optimised_metrics: metrics that were maximised with knowledge of these answers.
        scored_trials: whether each example counts with its selected or its best trial.
        evaluators: by name.
        judge: identity of the judge, if one was called on.
        judge_calibration: what is known about it.
        generations: folder of the generations, relative to the run's own.
        files: what the files of lines held when the run was done, by their names.
        parameters: what a search chose for all test items together; by group where it chose for each.
        receipt: proof of steering.
        subset: which examples count, where not all do.
        estimates: by metric.
        estimates_unselected_set: the same over all examples, where a subset counts.
        derived: figures of the whole set that are no means.
        num_examples: examples that were scored.
        near_ties: decoding steps at which another batch could have chosen another token.
        cost: work done.
        provenance: where the numbers come from.
    """

    format: Literal[1] = FORMAT
    key: str
    entry: str
    name: str
    created: str
    status: Status
    error: str | None = None
    sweep: str | None = None
    overrides: tuple[str, ...] = ()
    config: dict[str, Any]
    labels: Labels
    access: tuple[str, ...] = ()
    oracle: bool
    searched: SearchNote | None = None
    optimised_metrics: tuple[str, ...] = ()
    scored_trials: Literal["selected", "best"] = "selected"
    evaluators: dict[str, EvaluatorNote]
    judge: str | None = None
    judge_calibration: dict[str, Any] | None = None
    generations: str | None = None
    files: dict[str, FileMark] = Field(default_factory=dict)
    parameters: dict[str, Any] = Field(default_factory=dict)
    receipt: Receipt | None = None
    subset: Subset | None = None
    estimates: dict[str, Estimate] = Field(default_factory=dict)
    estimates_unselected_set: dict[str, Estimate] | None = None
    derived: dict[str, float] = Field(default_factory=dict)
    num_examples: int = 0
    near_ties: int = 0
    cost: Cost = Cost()
    provenance: Provenance = Provenance()

    def write(self, folder: Path) -> None:
        """Replace the folder's ``run.json``."""
        write_json(folder / RUN_FILE, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record of a run's folder.

        Raises:
            ValueError: there is no ``run.json``, or it is not one that this version can read; the message says why.
        """
        path = folder / RUN_FILE
        content = read_json(path)
        if content is None:
            raise ValueError(f"{folder} is not a run: it has no {RUN_FILE}")
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            stated = content.get("format") if isinstance(content, dict) else None
            raise ValueError(f"{path} has format {stated!r}; this version reads format {FORMAT}")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{path}: {place}: {first['msg']} ({error.error_count()} problems in all)") from None

    @property
    def awaits_scoring(self) -> bool:
        """Whether it holds imported texts that nobody scored yet."""
        return self.provenance.imported_from is not None and not self.evaluators

    @property
    def metrics(self) -> dict[str, Metric]:
        """Every metric that the evaluators declare, in their order."""
        return {note.name: note.metric() for evaluator in self.evaluators.values() for note in evaluator.metrics}

    @property
    def judged_metrics(self) -> frozenset[str]:
        """Metrics that hang on a judge."""
        judged = [evaluator for evaluator in self.evaluators.values() if evaluator.judged]
        return frozenset(note.name for evaluator in judged for note in evaluator.metrics)


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
    if record.generations is None:
        return {}
    selected: dict[str, Selected] = {}
    for name in (GENERATIONS_FILE, LATENTS_FILE):
        if name == LATENTS_FILE and name not in record.files:
            continue  # this run asked for none, whatever another run left beside its generations
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
