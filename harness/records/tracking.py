"""Copies of finished runs in Weights & Biases, made from the run's directory. The only file that imports wandb."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from harness.records.keys import key_of
from harness.records.lines import read_json, write_json
from harness.records.publication import Publication, read_publication

logger = logging.getLogger(__name__)

Way = Literal["offline", "online", "disabled"]
Mode = Literal["auto", "offline", "online", "disabled"]
TABLE = "examples"
TRIALS, BEST_OBJECTIVE = "search/trials", "search/best_objective"
REPORT = "report"
"""Job type of a comparison's report."""


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """No tracking: everything is in the run's directory anyway."""

    def publish(self, run_folder: Path, group: str | None = None) -> str | None:
        """Publish a finished run; nothing to do here."""
        return None

    def publish_report(self, path: Path, group: str | None = None) -> str | None:
        """Publish a comparison's report; nothing to do here."""
        return None


@dataclass(frozen=True, kw_only=True)
class WandbTracking(Tracking):
    """Weights & Biases. A W&B that fails or is missing costs one warning, never a run.

    A run is published whole, at its end, under an id made from its key: publishing again replaces the copy, or does
    nothing where it is the same already. Offline copies lie in ``wandb/`` beside the run's directory, at most one for
    each run; ``wandb sync`` uploads them.

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

    def publish(self, run_folder: Path, group: str | None = None) -> str | None:
        """Publish a run.

        Args:
            run_folder: directory with run.json.
            group: name of the sweep.

        Returns:
            The id of the W&B run, or None if there is none; the reason is then in the log.
        """
        return self._attempt(run_folder, lambda: _run_copy(run_folder, self.group or group, self.tags))

    def publish_report(self, path: Path, group: str | None = None) -> str | None:
        """Publish a comparison's page, to look at and to download; see `publish`. Without the file nothing happens.

        Args:
            path: report.html.
            group: name of the sweep that it compares.
        """
        if not path.is_file():
            return None
        return self._attempt(path, lambda: _report_copy(path, self.group or group, self.tags))

    def _attempt(self, source: Path, make: Callable[[], _Copy]) -> str | None:
        """The border: whatever fails behind it is one line in the log."""
        try:
            mode = wanted_mode() if self.mode == "auto" else self.mode
            if mode == "disabled":
                return None
            return self._publish(make(), source.parent / "wandb", mode)
        except Exception as error:  # of wandb, of the network, of the disk: none of them may cost a run
            logger.warning("%s was not published to W&B: %s", source, _one_line(error))
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
            logger.warning("W&B cannot be reached, copies stay in %s for wandb sync: %s", folder, _one_line(error))
            return self._publish(copy, folder, "offline")
        return copy.id

    def _is_published(self, copy: _Copy, folder: Path, mode: Way) -> bool:
        here = mode == "online" or any(folder.glob(f"offline-run-*-{copy.id}/run-{copy.id}.wandb"))
        return here and read_json(_receipt(folder, copy.id)) == self._claim(copy, mode)

    def _claim(self, copy: _Copy, mode: Way) -> dict[str, Any]:
        return {"digest": copy.digest, "mode": mode, "entity": self.entity, "project": self.project}

    def _replace(self, copy: _Copy, folder: Path, mode: Way) -> None:
        """Make the copy, or leave nothing of it: half a copy must not be there to be synced."""
        receipt = _receipt(folder, copy.id)
        receipt.parent.mkdir(parents=True, exist_ok=True)
        _discard(folder, copy.id, mode)
        if (read_json(receipt) or {}).get("mode") == mode:
            receipt.unlink()  # it must not vouch for a copy that is killed half-way
        try:
            self._send(copy, folder, mode)
        except BaseException:
            _discard(folder, copy.id, mode)
            raise
        if mode == "online":
            for made in ("online", "offline"):
                _discard(folder, copy.id, made)
        write_json(receipt, self._claim(copy, mode))

    def _send(self, copy: _Copy, folder: Path, mode: Way) -> None:
        with _environment(WANDB_SILENT="true", WANDB_DATA_DIR=str(_staging(folder, copy.id, mode).resolve())):
            import wandb

            try:
                run = wandb.init(
                    project=self.project,
                    entity=self.entity,
                    id=copy.id,
                    dir=str(folder.parent.resolve()),
                    settings=wandb.Settings(mode=mode, **_quiet(self.timeout)),
                    **copy.opening,
                )
                exit_code = 1
                try:
                    copy.write(run)
                    exit_code = int(copy.failed)
                finally:
                    run.finish(exit_code=exit_code)
            finally:
                wandb.teardown()  # the file is complete only now; and a failed service would keep the id to itself


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


def _quiet(timeout: float) -> dict[str, Any]:
    """No console output, no look at this machine or its files: the run's directory already says where it comes from."""
    return {
        "silent": True,
        "console": "off",
        "reinit": "create_new",
        "disable_code": True,
        "disable_git": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
        "init_timeout": timeout,
        "finish_timeout": timeout,
        "finish_timeout_raises": True,
    }


def wanted_mode() -> Way:
    """What WANDB_MODE asks for; without it online if there is a login, otherwise offline."""
    asked: dict[str, Way] = {
        "online": "online",
        "run": "online",
        "offline": "offline",
        "dryrun": "offline",
        "disabled": "disabled",
    }
    return asked.get(os.environ.get("WANDB_MODE", "")) or ("online" if is_logged_in() else "offline")


def is_logged_in() -> bool:
    """Whether the environment, a netrc file or W&B's settings hold a key; no network is used and nothing is asked."""
    with _environment(WANDB_SILENT="true"):
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import wbauth

        host = wandb_setup.singleton().settings.base_url
        return wbauth.authenticate_session(host=host, source="", prompt=False, update_session=False) is not None


def _receipt(folder: Path, id: str) -> Path:
    return folder / "published" / f"{id}.json"


def _staging(folder: Path, id: str, mode: Way) -> Path:
    return folder / "staging" / f"{mode}-{id}"


def _discard(folder: Path, id: str, mode: Way) -> None:
    """Remove earlier copies on this disk, finished or not."""
    start = "offline-run" if mode == "offline" else "run"
    for path in (_staging(folder, id, mode), *folder.glob(f"{start}-*-{id}")):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables for a moment: wandb reads some settings nowhere else."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
