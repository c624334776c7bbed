"""``python -m harness``: compose, run, compare.

Little is imported here: a wrong option, ``--help`` and completion answer before torch is loaded.
"""

from __future__ import annotations

import sys
from typing import Any

import hydra
from omegaconf import DictConfig

from harness.commands.run import command_line, run_job


@hydra.main(config_path="../conf", config_name="config", version_base="1.3")
def main(config: DictConfig) -> Any:
    """Run one job; Hydra calls this for each job of a sweep, perhaps in another process."""
    return run_job(config)


def console_main() -> int:
    """Run the command line; every failure is one line and a non-zero exit status."""
    return command_line(main)


if __name__ == "__main__":
    sys.exit(console_main())
