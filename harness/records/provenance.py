"""Where a result comes from."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from harness.records.run import Provenance

_PACKAGES = ("steering-harness", "torch", "transformers", "optuna", "hydra-core", "bitsandbytes", "numpy")


def versions() -> dict[str, str]:
    """Python and the packages that results depend on."""
    installed = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def commit() -> str | None:
    """The commit of this source tree, with ``+changes`` if it was modified; None outside a repository."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None

    # Untracked files are left out: runs and notes beside the code do not change it.
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def device_name(device: torch.device) -> str:
    """What computed the result."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return "GPU of a worker"  # this process only hands out work
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def peak_memory_bytes() -> int:
    """Largest memory of this process so far, on the accelerator if there is one in use."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def provenance(device: torch.device, **known: Any) -> Provenance:
    """Everything to trace a result by."""
    return Provenance(commit=commit(), versions=versions(), device=device_name(device), **known)
