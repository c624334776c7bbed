"""One run in W&B: how it is opened, what it is told while it lasts, and how it ends."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from harness.progress import Figures

logger = logging.getLogger(__name__)

Way = Literal["offline", "online", "disabled"]
_PROGRESS_EVERY_SECONDS = 2.0


def begin(
    id: str,
    opening: Mapping[str, Any],
    folder: Path,
    mode: Way,
    *,
    project: str,
    entity: str | None,
    timeout: float,
) -> Live:
    """Open a W&B run.

    Args:
        id: of the run; a second one of this id replaces the first.
        opening: name, group, tags, settings and so on.
        folder: ``wandb/``, beside the directories of runs.
        mode: online or offline.
        project: W&B project.
        entity: user or team; None for the one that the login names.
        timeout: seconds to wait at its start and at its end.
    """
    with wandb_settings(folder, id, mode):
        import wandb

        try:
            run = wandb.init(
                project=project,
                entity=entity,
                id=id,
                dir=str(folder.parent.resolve()),
                settings=wandb.Settings(mode=mode, **_quiet(timeout)),
                **opening,
            )
        except BaseException:
            wandb.teardown()  # a failed service would keep the id to itself
            raise
    return Live(id, mode, run)


@dataclass
class Live:
    """A W&B run while it is open.

    Args:
        id: of the run.
        mode: online or offline.
        run: W&B's object.
    """

    id: str
    mode: Way
    run: Any
    is_open: bool = True
    _next_seconds: float = 0.0

    def log(self, figures: Figures) -> None:
        """Hand on what the job reports: every round of a search, and how far it is every two seconds at most."""
        if not self.is_open or ("progress/phase" in figures and monotonic() < self._next_seconds):
            return
        if "progress/phase" in figures:
            self._next_seconds = monotonic() + _PROGRESS_EVERY_SECONDS
        try:
            self.run.log(dict(figures))
        except Exception as error:  # a tracker that fails costs no run
            logger.debug("W&B took no figures: %s", one_line(error))

    def close(self, exit_code: int) -> None:
        """Close the run, once; its file is complete afterwards."""
        if not self.is_open:
            return
        self.is_open = False
        import wandb

        try:
            self.run.finish(exit_code=exit_code)
        finally:
            wandb.teardown()


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


def wandb_settings(folder: Path, id: str, mode: Way) -> AbstractContextManager[None]:
    """What W&B reads from the environment alone: that it is quiet, and where it puts files before they are sent."""
    return _environment(WANDB_SILENT="true", WANDB_DATA_DIR=str(staging(folder, id, mode).resolve()))


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


def one_line(error: BaseException) -> str:
    """An error's kind and message without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def staging(folder: Path, id: str, mode: Way) -> Path:
    """Where files wait that belong to a run's table and artifacts."""
    return folder / "staging" / f"{mode}-{id}"
