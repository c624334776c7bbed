"""The store as a worker sees it: it reads and writes by asking the process that holds the folder's lock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.records.rows import Selected, Trial
from harness.records.run import Receipt
from harness.records.store import GenerationStore, Sizes, Work
from harness.steering import Artifact


class RemoteStore(GenerationStore):
    """Implements what the pieces of a job use of `GenerationStore`, over a connection.

    Args:
        folder: where the store lies for its owner. A worker that sees the folder too keeps checkpoints of a fit there.
        ask: returns what the owner's store says under a name, for these arguments.
        tell: has the owner's store do what this name says, with these arguments.
    """

    def __init__(self, folder: Path, ask: Callable[..., Any], tell: Callable[..., None]) -> None:
        super().__init__(folder)
        self._ask, self._tell = ask, tell

    @property
    def artifact(self) -> Artifact | None:
        """The tensors that hold for this job, whoever fitted them."""
        return self._ask("artifact")

    @property
    def prepared(self) -> dict[str, Any]:
        """What a search decided once for all test items."""
        return self._ask("prepared")

    @property
    def sizes(self) -> Sizes | None:
        """How large chunks and batches are."""
        return self._ask("sizes")

    @cached_property
    def unfinished_trials(self) -> dict[str, list[Trial]]:
        """Trials of examples without a generation, as they were when this was first asked for."""
        return self._ask("unfinished_trials")

    def trials(self) -> Iterator[Trial]:
        """All trials so far."""
        return iter(self._ask("trials"))

    def selected(self) -> list[Selected]:
        """All generations so far."""
        return self._ask("selected")

    def note(self, name: str) -> Any:
        """What a search noted."""
        return self._ask("note", name)

    def save_note(self, name: str, content: Any) -> None:
        """See `GenerationStore`."""
        self._tell("save_note", name, content)

    def add_trials(self, trials: list[Trial], work: Work) -> None:
        """See `GenerationStore`."""
        self._tell("add_trials", trials, work)

    def drop_trials(self, torn: set[tuple[str, int]]) -> None:
        """See `GenerationStore`."""
        self._tell("drop_trials", torn)

    def add_selected(self, selected: list[Selected]) -> None:
        """See `GenerationStore`."""
        self._tell("add_selected", selected)

    def save_latents(self, latents: list[Selected]) -> None:
        """See `GenerationStore`."""
        self._tell("save_latents", latents)

    def add_work(self, work: Work) -> None:
        """See `GenerationStore`."""
        self._tell("add_work", work)

    def save_artifact(self, artifact: Artifact) -> None:
        """See `GenerationStore`."""
        # A view would be sent with all that it is a view of.
        self._tell("save_artifact", {name: value.detach().cpu().clone() for name, value in artifact.items()})

    def save_prepared(self, prepared: Mapping[str, Any]) -> None:
        """See `GenerationStore`."""
        self._tell("save_prepared", dict(prepared))

    def save_sizes(self, sizes: Sizes) -> None:
        """See `GenerationStore`."""
        self._tell("save_sizes", sizes)

    def save_receipt(self, receipt: Receipt) -> None:
        """See `GenerationStore`."""
        self._tell("save_receipt", receipt)
