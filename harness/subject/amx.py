"""Matrix units (AMX) that a CPU announces and its virtual machine forbids.

Some virtual machines list ``amx`` among the processor's features but stop every program that uses it: a half-precision
product then ends the process with "Illegal instruction", without a traceback. oneDNN, which computes these products for
torch, can be told to leave the units alone, but only before it computes for the first time.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from harness.subject.digest import cache_root

VARIABLE, SAFE = "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16"
"""oneDNN's limit on instruction sets, and the largest one without AMX that computes bfloat16 well."""
NOTICE = f"this CPU announces AMX but does not let programs use it: {VARIABLE}={SAFE} is set for this run"

_CPUINFO = Path("/proc/cpuinfo")
_PRODUCTS = """
import torch
for dtype in (torch.bfloat16, torch.float16):
    ones = torch.ones(128, 128, dtype=dtype)
    torch.nn.functional.linear(ones, ones)
"""


def products_survive() -> bool:
    """Whether half-precision products run on this CPU: tried in a child process, since a failure ends the process."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    tried = subprocess.run([sys.executable, "-c", _PRODUCTS], env=environment, capture_output=True, check=False)
    # A signal ends the child with a negative status. Any other failure has nothing to do with AMX.
    return tried.returncode >= 0


def is_trapped(cpuinfo: Path = _CPUINFO, survive: Callable[[], bool] = products_survive) -> bool:
    """Whether this machine announces AMX and traps it.

    Only CPUs that name ``amx`` are tried, and each host once: the answer is kept in the cache.

    Args:
        cpuinfo: the kernel's description of the processor; absent on systems other than Linux.
        survive: tries the products.
    """
    description = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    flags = next((line for line in description.splitlines() if line.startswith("flags")), "")
    if "amx" not in flags:
        return False

    model = next((line.partition(":")[2].strip() for line in description.splitlines() if "model name" in line), "")
    host = {"host": platform.node(), "kernel": platform.release(), "cpu": model}
    note = cache_root() / "amx.json"
    try:
        known = json.loads(note.read_text())
        if known["host"] == host:
            return bool(known["trapped"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not tried yet, or the note is damaged: try (again)

    trapped = not survive()
    note.parent.mkdir(parents=True, exist_ok=True)
    draft = note.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps({"host": host, "trapped": trapped}))
    draft.replace(note)
    return trapped


def avoid_trapped_amx(cpuinfo: Path = _CPUINFO, survive: Callable[[], bool] = products_survive) -> bool:
    """Keep oneDNN away from AMX in this process and its children where it would end them.

    Call it before the first product. A value that the user has set stays. All dtypes are covered: one process may run
    a float32 job first and a bfloat16 job later, and oneDNN reads the variable only once.

    Returns:
        Whether the variable was set now.
    """
    if VARIABLE in os.environ or not is_trapped(cpuinfo, survive):
        return False
    os.environ[VARIABLE] = SAFE
    print(NOTICE, file=sys.stderr)
    return True
