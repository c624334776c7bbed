"""How much main memory is left."""

from __future__ import annotations

import re
from pathlib import Path

_LINUX = Path("/proc/meminfo")


def available_memory() -> int:
    """Bytes of main memory that can still be had without swapping.

    Linux says so itself, so that the engine runs there with torch and transformers alone; elsewhere psutil is asked.
    """
    if _LINUX.is_file() and (line := re.search(r"^MemAvailable:\s+(\d+) kB$", _LINUX.read_text(), re.MULTILINE)):
        return int(line[1]) * 1024

    import psutil

    return psutil.virtual_memory().available
