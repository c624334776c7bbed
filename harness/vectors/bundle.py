"""A fitted method in one file: its tensors, and everything that is needed to apply it and to know what it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from harness.data import Parameters
from harness.nodes import Packages, built, installed_packages
from harness.records.lines import replaced
from harness.records.run import RunRecord
from harness.records.store import GenerationStore
from harness.steering import Artifact, Layout, Method

METADATA = "steering_harness"
"""Entry of the file's metadata that holds a `BundleNote` as JSON."""


class ScoreNote(BaseModel):
    """A metric that was measured with these parameters, with its 95 % interval."""

    model_config = ConfigDict(extra="ignore")
    value: float | None
    low: float | None
    high: float | None
    num_scored: int


class BundleNote(BaseModel):
    """What a bundle says about itself.

    Args:
        format: of the file.
        label: what the method is called in tables.
        method: its class and settings, as a YAML holds them; the token rule, the site and the normalisation are there.
        version: of the method when it was fitted.
        model: what the model was called.
        model_identity: names its exact weights.
        model_node: how it was loaded, as a YAML holds it; empty for a model that was handed over in memory.
        num_layers: of the model.
        width: of the model.
        access: what the method was shown besides the question.
        parameters: chosen on data that no score here was measured on; empty if none were.
        task: where the training data came from.
        scores: by metric, measured with these parameters.
        run: name of the run that they come from.
    """

    model_config = ConfigDict(extra="forbid")
    format: Literal[1] = 1
    label: str
    method: dict[str, Any]
    version: int
    model: str
    model_identity: str
    model_node: dict[str, Any] = {}
    num_layers: int
    width: int
    access: tuple[str, ...] = ()
    parameters: dict[str, float] = {}
    task: str = ""
    scores: dict[str, ScoreNote] = {}
    run: str = ""


@dataclass(frozen=True, eq=False)
class Bundle:
    """A fitted method.

    Args:
        note: what it is.
        artifact: its tensors.
    """

    note: BundleNote
    artifact: Artifact

    def save(self, path: str | Path) -> Path:
        """Write the bundle as safetensors, whole or not at all."""
        target = Path(path)
        if target.suffix != ".safetensors":
            raise ValueError(f"a bundle's file name ends in .safetensors, got {target}")
        target.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.artifact.items()}
        with replaced(target) as draft:
            save_file(tensors, draft, metadata={METADATA: self.note.model_dump_json()})
        return target

    def method(self, packages: Packages = None) -> Method:
        """The method, ready to be applied.

        Args:
            packages: whose classes the note may name; None for every installed package.

        Raises:
            ValueError: it names no class that is a method here, or settings that this version of it does not have.
        """
        return built(self.note.method, Method, "method", packages=packages or installed_packages())

    def check(self, layout: Layout) -> None:
        """Raise ValueError for a model of another shape than the one that the method was fitted on."""
        fitted, here = (self.note.num_layers, self.note.width), (layout.num_layers, layout.width)
        if fitted != here:
            raise ValueError(
                f"{self.note.label} was fitted on {self.note.model} ({fitted[0]} layers of width {fitted[1]}); "
                f"this model has {here[0]} layers of width {here[1]}"
            )


def is_bundle(path: Path) -> bool:
    """Whether a file is a bundle, and not somebody else's tensors."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            return METADATA in (file.metadata() or {})
    except SafetensorError:
        return False


def read_bundle(path: str | Path) -> Bundle:
    """A bundle from its file. No code of the file's is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no bundle, or a damaged one.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"bundle not found: {source}")
    try:
        with safe_open(source, "pt") as file:
            text = (file.metadata() or {}).get(METADATA)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise ValueError(f"{source} cannot be read as safetensors: {error}") from error
    if text is None:
        raise ValueError(f"{source} holds tensors but no note of the harness: it is not a bundle")
    try:
        return Bundle(BundleNote.model_validate_json(text), tensors)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ValueError(f"{source}: its note is damaged at {problem['loc']}: {problem['msg']}") from error


def bundle_of_run(folder: Path) -> Bundle:
    """What a finished run found.

    Raises:
        ValueError: the run is not done, did not steer, or chose its parameters prompt by prompt.
    """
    record = RunRecord.read(folder)
    if record.status != "done" or record.generations is None:
        raise ValueError(f"{folder}: the run is {record.status}; only a finished run can be exported")
    if record.labels.control not in ("", "none"):
        raise ValueError(f"{folder} is a control ({record.labels.control}): export the run that it belongs to")
    note = _facts_of(record, folder)
    artifact = GenerationStore(folder / record.generations).artifact
    if artifact is None:
        raise ValueError(f"{folder}: method {note.label} has fitted nothing that could be exported")
    return Bundle(note, artifact)


def _facts_of(record: RunRecord, folder: Path) -> BundleNote:
    made = record.provenance
    if made.num_layers is None or made.width is None:
        raise ValueError(f"{folder}: the run does not say what shape its model has; run it again")
    scores = {name: dataclasses.asdict(estimate) for name, estimate in record.estimates.items()}

    return BundleNote(
        label=record.labels.method,
        method=record.config["method"],
        version=made.method_version,
        model=record.labels.model,
        model_identity=made.model_identity,
        model_node=record.config["model"],
        num_layers=made.num_layers,
        width=made.width,
        access=record.access,
        parameters=shared_parameters(record.parameters),
        task=record.labels.task,
        scores={name: ScoreNote(**score) for name, score in scores.items()},
        run=record.name,
    )


def shared_parameters(chosen: Mapping[str, Any]) -> Parameters:
    """Parameters that a search chose for all items together; none if it chose for each, or group by group."""
    numbers = {name: float(value) for name, value in chosen.items() if isinstance(value, int | float)}
    return numbers if len(numbers) == len(chosen) else {}
