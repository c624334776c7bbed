"""Runs in Weights & Biases: open while they last, whole at their end.

What stands in W&B at the end is made from the run's directory, so that it can be made again from there.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from harness.progress import watched
from harness.records.keys import key_of
from harness.records.lines import read_json, write_json
from harness.records.publication import Publication, read_publication
from harness.records.wandb_run import Live, Way, begin, one_line, staging, wandb_settings, wanted_mode

logger = logging.getLogger(__name__)

Mode = Literal["auto", "offline", "online", "disabled"]
TABLE = "examples"
TRIALS, BEST_OBJECTIVE = "search/trials", "search/best_objective"
REPORT = "report"
"""Job type of a comparison's report."""


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """No tracking: everything is in the run's directory anyway."""

    @contextmanager
    def live(self, run_folder: Path, group: str | None = None) -> Iterator[Live | None]:
        """Show a run while the block lasts; nothing to do here."""
        yield None

    def publish(self, run_folder: Path, group: str | None = None, live: Live | None = None) -> str | None:
        """Publish a finished run; nothing to do here."""
        return None

    def publish_report(self, path: Path, group: str | None = None) -> str | None:
        """Publish a comparison's report; nothing to do here."""
        return None


@dataclass(frozen=True, kw_only=True)
class WandbTracking(Tracking):
    """Weights & Biases. A W&B that fails or is missing costs one warning, never a run.

    A run is open from its start, under an id made from its key: its settings, its phase and what its search reaches are
    there at once, and a run that dies is one that W&B calls crashed. At its end it gets the metrics, the table, the
    curve, the fitted tensors and the trials. Publishing a finished run again replaces the copy, or does nothing where
    it is the same already. Offline copies lie in ``wandb/`` beside the run's directory, at most one for each run;
    ``wandb sync`` uploads them.

    Args:
        project: W&B project.
        entity: user or team; None for the one that the login names.
        group: for all runs; None takes the sweep's.
        tags: tags to add to task, model, method, search, control and oracle or deployable.
        mode: online, offline, disabled, or auto: what WANDB_MODE says, otherwise online where a login for W&B is found
            (offline after all if it cannot be reached), otherwise offline.
        timeout: seconds to wait for W&B at the start and at the end of a copy, above 0.

    Raises:
        ValueError: for an unknown mode or a timeout that is not above 0.
    """

    project: str = "steering"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Mode = "auto"
    timeout: float = 30.0

    def __post_init__(self) -> None:
        """Check the values before anything runs."""
        if self.mode not in get_args(Mode):
            raise ValueError(f"tracking.mode must be one of {', '.join(get_args(Mode))}, got '{self.mode}'")
        if not self.timeout > 0:
            raise ValueError(f"tracking.timeout must be above 0 seconds, got {self.timeout}")

    @contextmanager
    def live(self, run_folder: Path, group: str | None = None) -> Iterator[Live | None]:
        """Open the W&B run of a run that starts now, and hand it what the job reports while the block lasts.

        Whoever knows how the run ended hands the yielded object to `publish`, which adds the rest and closes it. If
        nobody does, because the process is being stopped, it is closed as one that failed.

        Args:
            run_folder: directory with run.json.
            group: name of the sweep.
        """
        live = self._opened(run_folder, group)
        if live is None:
            yield None
            return
        try:
            with watched(live.log):
                yield live
        finally:
            live.close(exit_code=1)

    def _opened(self, run_folder: Path, group: str | None) -> Live | None:
        """The open run, or None where W&B is off or fails: what is wrong with it, `publish` will say."""
        try:
            mode = wanted_mode() if self.mode == "auto" else self.mode
            if mode == "disabled":
                return None
            copy, folder = _run_copy(run_folder, self.group or group, self.tags), run_folder.parent / "wandb"
            self._forget(copy, folder, mode)
            return self._begun(copy, folder, mode)
        except Exception as error:
            logger.debug("no live run in W&B: %s", one_line(error))
            return None

    def publish(self, run_folder: Path, group: str | None = None, live: Live | None = None) -> str | None:
        """Publish a run.

        Args:
            run_folder: directory with run.json.
            group: name of the sweep.
            live: what `live` yielded for this run, if it is still open.

        Returns:
            The id of the W&B run, or None if there is none; the reason is then in the log.
        """
        return self._attempt(run_folder, lambda: _run_copy(run_folder, self.group or group, self.tags), live)

    def publish_report(self, path: Path, group: str | None = None) -> str | None:
        """Publish a comparison's page, to look at and to download; see `publish`. Without the file nothing happens.

        Args:
            path: report.html.
            group: name of the sweep that it compares.
        """
        if not path.is_file():
            return None
        return self._attempt(path, lambda: _report_copy(path, self.group or group, self.tags))

    def _attempt(self, source: Path, make: Callable[[], _Copy], live: Live | None = None) -> str | None:
        """The border: whatever fails behind it is one line in the log."""
        try:
            mode = wanted_mode() if self.mode == "auto" else self.mode
            if mode == "disabled":
                return None
            copy, folder = make(), source.parent / "wandb"
            if live is not None and live.is_open and self._completed(live, copy, folder):
                return copy.id
            return self._publish(copy, folder, mode)
        except Exception as error:  # of wandb, of the network, of the disk: none of them may cost a run
            logger.warning("%s was not published to W&B: %s", source, one_line(error))
            return None

    def _publish(self, copy: _Copy, folder: Path, mode: Way) -> str:
        if self._is_published(copy, folder, mode):
            return copy.id
        try:
            self._replace(copy, folder, mode)
        except Exception as error:  # whatever it is, the copy may still be kept on this disk
            if self.mode != "auto" or mode == "offline":
                raise
            os.environ["WANDB_MODE"] = "offline"  # the other jobs of this process need not wait for it again
            logger.warning("W&B cannot be reached, copies stay in %s for wandb sync: %s", folder, one_line(error))
            return self._publish(copy, folder, "offline")
        return copy.id

    def _is_published(self, copy: _Copy, folder: Path, mode: Way) -> bool:
        here = mode == "online" or any(folder.glob(f"offline-run-*-{copy.id}/run-{copy.id}.wandb"))
        return here and read_json(_receipt(folder, copy.id)) == self._claim(copy, mode)

    def _claim(self, copy: _Copy, mode: Way) -> dict[str, Any]:
        return {"digest": copy.digest, "mode": mode, "entity": self.entity, "project": self.project}

    def _completed(self, live: Live, copy: _Copy, folder: Path) -> bool:
        """Add what is known at the end to the open run and close it; False, with nothing left of it, if that failed."""
        try:
            with wandb_settings(folder, copy.id, live.mode):
                live.run.config.update(copy.opening.get("config", {}), allow_val_change=True)
                live.run.notes = copy.opening.get("notes")
                copy.write(live.run)
                live.close(int(copy.failed))
        except Exception as error:
            logger.debug("the live run in W&B could not be completed: %s", one_line(error))
            live.close(exit_code=1)
            _discard(folder, copy.id, live.mode)
            return False
        self._sent(copy, folder, live.mode)
        return True

    def _replace(self, copy: _Copy, folder: Path, mode: Way) -> None:
        """Make the copy, or leave nothing of it: half a copy must not be there to be synced."""
        self._forget(copy, folder, mode)
        try:
            with wandb_settings(folder, copy.id, mode):
                live = self._begun(copy, folder, mode)
                exit_code = 1
                try:
                    copy.write(live.run)
                    exit_code = int(copy.failed)
                finally:
                    live.close(exit_code)
        except BaseException:
            _discard(folder, copy.id, mode)
            raise
        self._sent(copy, folder, mode)

    def _forget(self, copy: _Copy, folder: Path, mode: Way) -> None:
        """Remove earlier copies and the receipt: it must not vouch for a copy that is killed half-way."""
        receipt = _receipt(folder, copy.id)
        receipt.parent.mkdir(parents=True, exist_ok=True)
        _discard(folder, copy.id, mode)
        if (read_json(receipt) or {}).get("mode") == mode:
            receipt.unlink()

    def _begun(self, copy: _Copy, folder: Path, mode: Way) -> Live:
        where = {"project": self.project, "entity": self.entity, "timeout": self.timeout}
        return begin(copy.id, copy.opening, folder, mode, **where)

    def _sent(self, copy: _Copy, folder: Path, mode: Way) -> None:
        """Note that the copy is whole."""
        if mode == "online":
            for made in ("online", "offline"):
                _discard(folder, copy.id, made)
        write_json(_receipt(folder, copy.id), self._claim(copy, mode))


@dataclass(frozen=True)
class _Copy:
    """What to send: how the W&B run opens, and what writes it."""

    id: str
    digest: str
    opening: Mapping[str, Any]
    write: Callable[[Any], None]
    failed: bool = False


def _run_copy(run_folder: Path, group: str | None, tags: tuple[str, ...]) -> _Copy:
    publication = read_publication(run_folder, group, tags)
    opening = {
        "name": publication.name,
        "group": publication.group,
        "job_type": publication.job_type,
        "tags": list(publication.tags),
        "notes": publication.notes,
        "config": dict(publication.config),
    }
    return _Copy(publication.id, publication.digest, opening, _writer(publication), publication.failed)


def _writer(publication: Publication) -> Callable[[Any], None]:
    def write(run: Any) -> None:
        import wandb

        run.define_metric(TRIALS, hidden=True)
        run.define_metric(BEST_OBJECTIVE, step_metric=TRIALS)
        for trials, objective in publication.curve:
            run.log({TRIALS: trials, BEST_OBJECTIVE: objective})
        if publication.rows:
            run.log({TABLE: wandb.Table(columns=list(publication.columns), data=list(map(list, publication.rows)))})
        for kind, path in publication.files.items():
            artifact = wandb.Artifact(f"{kind}-{publication.id}", type=kind)
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
            run.log_artifact(artifact)
        run.summary.update(dict(publication.summary))

    return write


def _report_copy(path: Path, group: str | None, tags: tuple[str, ...]) -> _Copy:
    page = path.read_text("utf-8")
    name = f"comparison-{group or path.resolve().parent.name}"
    opening = {"name": name, "group": group, "job_type": REPORT, "tags": [REPORT, *tags]}

    def write(run: Any) -> None:
        import wandb

        artifact = wandb.Artifact(f"comparison-{key_of(name)}", type=REPORT)
        artifact.add_file(str(path), name="report.html")
        run.log_artifact(artifact)
        run.log({"comparison": wandb.Html(page, inject=False, data_is_not_path=True)})

    return _Copy(key_of([REPORT, name]), key_of([opening, page]), opening, write)


def _receipt(folder: Path, id: str) -> Path:
    return folder / "published" / f"{id}.json"


def _discard(folder: Path, id: str, mode: Way) -> None:
    """Remove earlier copies on this disk, finished or not."""
    start = "offline-run" if mode == "offline" else "run"
    for path in (staging(folder, id, mode), *folder.glob(f"{start}-*-{id}")):
        shutil.rmtree(path, ignore_errors=True)
