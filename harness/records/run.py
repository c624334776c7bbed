"""A run as it stands in ``run.json``: one type, one writer, one reader."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.records.lines import FileMark, read_json, write_json
from harness.records.rows import FORMAT
from harness.scoring import Estimate, Evaluator, Metric, MetricKind

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
    rubrics: tuple[str, ...] = ()

    @classmethod
    def of(cls, metric: Metric) -> Self:
        """The note of a metric."""
        return cls(
            name=metric.name,
            higher_is_better=metric.higher_is_better,
            low=metric.low if math.isfinite(metric.low) else None,  # JSON knows no infinity
            high=metric.high if math.isfinite(metric.high) else None,
            kind=metric.kind,
            beside=metric.beside,
            rubrics=metric.rubrics,
        )

    def metric(self) -> Metric:
        """The metric."""
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return Metric(self.name, self.higher_is_better, low, high, self.kind, self.beside, self.rubrics)


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
        metrics = tuple(MetricNote.of(metric) for metric in evaluator.metrics)
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
        idle: no state changed in these rows, since the control left a method that decides by itself nothing to do.
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
    idle: bool = False


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
