"""Published data sets: rows from the hub, from a file, or from a few items of our own in the same columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.tasks.rows import HubData, Row, file_rows, hub_rows
from harness.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class HubTask(Task):
    """A task whose rows come from the hub unless ``path`` names a file or URL.

    Args:
        hub: ``owner/name`` on the hub.
        hub_config: configuration of the data set; None for its default.
        hub_split: split of the data set that holds the rows; several are joined by ``+``.
        revision: branch, tag or commit; None for the newest.
    """

    hub: str
    hub_config: str | None = None
    hub_split: str = "test"
    revision: str | None = None

    @property
    def origin(self) -> str:
        """The file, or the data set's name on the hub."""
        return self.path or self.hub

    def source(self) -> list[Row]:
        """Rows from the hub."""
        return hub_rows(HubData(self.hub, self.hub_config, self.hub_split, self.revision), self.columns)


@dataclass(frozen=True, kw_only=True)
class SampledTask(HubTask):
    """A published data set with a stand-in: a few items of the project's own wording, in the data set's columns.

    Args:
        sample: ask the stand-in's items. For trying things out and for machines without the hub; scores on them say
            nothing about the data set.
    """

    sample: bool = False

    @property
    def origin(self) -> str:
        """The file, the stand-in, or the data set's name on the hub."""
        return self.path or (f"the sample of {self.name}" if self.sample else self.hub)

    def source(self) -> list[Row]:
        """Rows of the stand-in, or from the hub."""
        return file_rows(str(Path(__file__).with_name(f"{self.name}.jsonl"))) if self.sample else super().source()

    def check(self) -> None:
        """Refuse two sources at once, then as every task."""
        if self.path and self.sample:
            raise ValueError(f"task.path={self.path} and task.sample=true name two sources; set one of them")
        super().check()
