"""A fitted method to hold in hand: apply it, save it, take it elsewhere."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness.api.model import Model, written
from harness.config import composed, plain_values
from harness.data import Demonstration, FitData, Offer, Pair, Parameters
from harness.nodes import built
from harness.progress import phase
from harness.steering import Artifact, Layout, Method
from harness.subject.plain import steered
from harness.tasks.rows import Row, check_columns, file_rows, text_of
from harness.tasks.task import Task
from harness.vectors.additions import described, same_for_all_prompts
from harness.vectors.bundle import Bundle, BundleNote, bundle_of_run, read_bundle
from harness.workspace import Workspace

Pairs = str | Path | Iterable[Mapping[str, str] | Sequence[str]]
"""A file with columns prompt, positive and negative, or such rows."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A method and what it has learnt. Made by `fit` or `load_vector`.

    Args:
        bundle: what it is, as a file holds it.
    """

    bundle: Bundle
    _method: Method = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Build the method once."""
        object.__setattr__(self, "_method", self.bundle.method())

    @property
    def name(self) -> str:
        """What the method is called."""
        return self.bundle.note.label

    @property
    def method(self) -> Method:
        """The method, with its settings."""
        return self._method

    @property
    def artifact(self) -> Artifact:
        """What it has learnt: tensors by name."""
        return self.bundle.artifact

    @property
    def parameters(self) -> Parameters:
        """The values that `at` starts from: those that were chosen, else the method's defaults."""
        note = self.bundle.note
        shape = Layout(num_layers=note.num_layers, width=note.width, num_heads=1, head_width=note.width)
        return self.method.defaults(shape) | note.parameters

    def __repr__(self) -> str:
        return f"<Fitted {self.name} on {self.bundle.note.model}: {described(self.parameters)}>"

    def at(self, **parameters: float) -> Steer:
        """The method at these parameters, the others at their chosen or default values.

        Raises:
            ValueError: it has no such parameter.
        """
        usual = self.parameters
        if unknown := parameters.keys() - usual.keys():
            known = ", ".join(usual) or "none"
            raise ValueError(f"{self.name} has no parameter {min(unknown)!r} (it has {known})")
        return Steer(self, usual | {name: float(value) for name, value in parameters.items()})

    @contextmanager
    def applied(self, model: Any, *, group: str = "") -> Iterator[None]:
        """See `Steer.applied`, at the values that `at` starts from."""
        with self.at().applied(model, group=group):
            yield

    def check(self, model: Model) -> None:
        """Raise ValueError for a model that it cannot steer."""
        self.bundle.check(model.resolved.layout)
        self.method.check(model.resolved.layout)

    def save(self, path: str | Path) -> Path:
        """Write a bundle: safetensors with everything needed to apply it. `load_vector` reads it.

        Raises:
            ValueError: the name does not end in .safetensors.
        """
        return self.bundle.save(path)


@dataclass(frozen=True, eq=False)
class Steer:
    """A fitted method at certain parameters. Made by `Fitted.at`.

    Args:
        fitted: the method.
        parameters: of every prompt.
    """

    fitted: Fitted
    parameters: Parameters

    def __repr__(self) -> str:
        return f"<Steer {self.fitted.name}: {described(self.parameters)}>"

    def at(self, **parameters: float) -> Steer:
        """The same with other values of some parameters."""
        return self.fitted.at(**(self.parameters | parameters))

    @contextmanager
    def applied(self, model: Any, *, group: str = "") -> Iterator[None]:
        """Steer a plain transformers model inside the block: its ``generate`` and every other forward pass.

        Args:
            model: a transformers causal language model, left as it was; or a `Model`, whose weights cannot be called
                directly.
            group: which of several fitted concepts or behaviours.

        Raises:
            ValueError: what the method does depends on the prompt, or it needs the engine to do it.
        """
        if isinstance(model, Model):
            raise ValueError("applied takes a plain transformers model; for a Model, use model.generate(…, steer=…)")
        device = next(model.parameters()).device
        artifact = {name: value.to(device) for name, value in self.fitted.artifact.items()}

        def of_rows(rows: int) -> Any:
            return same_for_all_prompts(self.fitted.method, artifact, self.parameters, group=group, rows=rows)

        with steered(model, of_rows):
            yield

    @property
    def bundle(self) -> Bundle:
        """The method with these parameters as the chosen ones."""
        known = self.fitted.bundle
        if dict(self.parameters) == known.note.parameters:
            return known
        # What was measured was measured at other values.
        note = known.note.model_copy(update={"parameters": dict(self.parameters), "scores": {}, "run": ""})
        return Bundle(note, known.artifact)

    @property
    def digest(self) -> str:
        """A hash of note and tensors."""
        digest = hashlib.sha256(self.bundle.note.model_dump_json().encode())
        for name, value in sorted(self.fitted.artifact.items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write a bundle, as `Fitted.save`."""
        return self.bundle.save(path)


def fit(
    method: str,
    model: Model,
    *,
    pairs: Pairs | None = None,
    task: str | None = None,
    seed: int = 0,
    **settings: Any,
) -> Fitted:
    """Fit a method on a model.

    Args:
        method: a name of ``conf/method``: ``caa``.
        model: what `load` gave.
        pairs: contrast pairs: a CSV, JSON Lines or JSON file with columns ``prompt``, ``positive`` and ``negative``
            (``group`` optional), or such rows. Methods that learn from texts or labelled answers learn from both sides,
            those that learn nothing need neither pairs nor a task.
        task: a task's training split instead: ``facts``, or with options as on the command line,
            ``"facts task.train_size=50"``.
        seed: of whatever is drawn in fitting.
        settings: as ``method.NAME`` on the command line: ``tokens="all"``.

    Raises:
        ValueError: no such method, a wrong setting, or data that the method cannot learn from.
    """
    if pairs is not None and task is not None:
        raise ValueError("fit learns from pairs=… or from task=…; give one of them, not both")
    overrides = [f"method={method}", *(f"method.{name}={written(value)}" for name, value in settings.items())]
    if task is not None:
        overrides += [part if "=" in part else f"task={part}" for part in task.split()]
    config, _ = composed([*overrides, *model.overrides])  # ranges of some methods depend on the model
    values = plain_values(config)

    built_method = built(values["method"], Method, "method")
    built_method.check(model.resolved.layout)
    if pairs is not None:
        data = data_of_pairs(_pairs(pairs), built_method.requires, method)
    elif task is not None:
        data = built(values["task"], Task, "task").fit_data(built_method.requires)
    elif built_method.requires:
        raise ValueError(f"{method} learns from pairs=… or from task=…; give one of them")
    else:
        data = FitData()

    workspace = Workspace(progress=lambda title, total: phase(title, total, "steps"))
    model.forget()
    subject = dataclasses.replace(model.subject, instruction=built_method.instruction, workspace=workspace)
    artifact = built_method.fit(subject, data)
    note = _note(method, values["method"], built_method, model, task)
    return Fitted(Bundle(note, {name: value.detach() for name, value in artifact.items()}))


def _note(label: str, node: Mapping[str, Any], method: Method, model: Model, task: str | None) -> BundleNote:
    """What a bundle says about a method that was fitted now."""
    layout = model.resolved.layout
    return BundleNote(
        label=label,
        method=dict(node),
        version=method.version,
        model=model.name,
        model_identity=model.resolved.identity,
        model_node=plain_values(composed(model.overrides)[0])["model"] if model.overrides else {},
        num_layers=layout.num_layers,
        width=layout.width,
        access=tuple(sorted(method.access)),
        task=task.split()[0] if task else "",
    )


def load_vector(path: str | Path) -> Fitted:
    """A fitted method from a bundle, or from the folder of a finished run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no bundle; other tools' vectors are read by ``method=vector``.
    """
    source = Path(path)
    return Fitted(bundle_of_run(source) if source.is_dir() else read_bundle(source))


def data_of_pairs(pairs: Sequence[Pair], requires: frozenset[Offer], method: str) -> FitData:
    """What a method learns from, made of contrast pairs.

    Raises:
        ValueError: there are none.
    """
    if requires and not pairs:
        raise ValueError(f"{method} learns from pairs, and there are none")
    sides = [(pair, completion, good) for pair in pairs for completion, good in _sides(pair)]
    demonstrations = [Demonstration(pair.prompt, text, wanted=good, group=pair.group) for pair, text, good in sides]

    # A method is shown what it asks for, and nothing else.
    return FitData(
        pairs=tuple(pairs) if "pairs" in requires else (),
        source=tuple(f"{pair.prompt} {pair.negative}" for pair in pairs) if "texts" in requires else (),
        target=tuple(f"{pair.prompt} {pair.positive}" for pair in pairs) if "texts" in requires else (),
        labelled=tuple((pair.prompt, text, good) for pair, text, good in sides) if "labelled" in requires else (),
        demonstrations=tuple(demonstrations) if "demonstrations" in requires else (),
    )


def _sides(pair: Pair) -> tuple[tuple[str, bool], tuple[str, bool]]:
    return (pair.positive, True), (pair.negative, False)


def _pairs(given: Pairs) -> list[Pair]:
    columns = ("prompt", "positive", "negative")
    rows: list[Row]
    if isinstance(given, str | Path):
        rows, origin = file_rows(str(given)), str(given)
    else:
        rows = [{**row} if isinstance(row, Mapping) else dict(zip(columns, row, strict=False)) for row in given]
        origin = "pairs"

    check_columns(rows, columns, origin)
    return [
        Pair(*(text_of(row, column, origin, number) for column in columns), group=str(row.get("group") or ""))
        for number, row in enumerate(rows, start=1)
    ]
