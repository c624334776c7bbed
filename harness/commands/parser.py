"""The parser of the commands' options: a mistake is one line, as everywhere else."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that says what is wrong without repeating every option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """End with exit status 2, and one line on stderr."""
        self.exit(2, f"error: {message} (--help lists the options)\n")
