"""What tests of the command line share, importable from child processes too."""

from __future__ import annotations

import os
import re
import resource
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

TINY = ("model=tiny", "tracking=none", "task.max_new_tokens=6")


@dataclass(frozen=True)
class Finished:
    """What a command came to."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on stderr."""
        assert self.status != 0, f"exit status 0, stderr: {self.err}"
        lines = [line for line in self.err.splitlines() if line.strip() and not SIGN_OF_LIFE.match(line)]
        assert len(lines) == 1, f"not one line: {self.err}"
        assert "Traceback" not in self.err + self.out
        return lines[0]


SIGN_OF_LIFE = re.compile(r"\d\d:\d\d:\d\d ")
"""How a line of progress begins."""
Cli = Callable[..., Finished]


def run_quietly(
    arguments: Sequence[str], folder: str, environment: Mapping[str, str], file_limit: int | None = None
) -> None:
    """Run ``python -m harness`` in a folder; stdout and stderr go to files there.

    Args:
        arguments: the command line.
        folder: working directory.
        environment: variables to set.
        file_limit: no file may grow past so many bytes: writing fails as it does on a full disk.
    """
    os.environ.update(environment)
    os.chdir(folder)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    if file_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    sys.argv = ["harness", *arguments]
    from harness.__main__ import console_main

    status = console_main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_as_module(
    module: str, arguments: Sequence[str], folder: str, names: Sequence[str], environment: Mapping[str, str]
) -> None:
    """Run ``python -m MODULE ARGUMENTS`` in a folder; stdout and stderr go to files there. Ends as a process does.

    Args:
        module: the command.
        arguments: its command line.
        folder: working directory.
        names: of the files for stdout and stderr.
        environment: variables to set.
    """
    os.environ.update(environment)
    os.chdir(folder)
    for name, descriptor in zip(names, (1, 2), strict=True):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = [module, *arguments]
    sys.modules.pop(f"{module}.__main__", None)  # imported ahead; as a program it is run anew
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
