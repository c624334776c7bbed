"""Peak memory of one steered batch, measured in a process that does nothing else."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bench import ours
from bench.timing import Stopwatch
from bench.work import Work, model_config
from harness.subject.load import load_model
from harness.subject.scorers import open_subject


def peak_memory(model: str, device: str, dtype: str | None, rows: int, new_tokens: int, threads: int) -> dict[str, Any]:
    """Bytes at most, of a fresh process that loads the model and decodes; see `measure`."""
    options = json.dumps(
        {"model": model, "device": device, "dtype": dtype, "rows": rows, "new_tokens": new_tokens, "threads": threads}
    )
    command = [sys.executable, "-m", "bench.memory", options]
    # The child must find what this process finds, wherever that was put on the path.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(out.splitlines()[-1])


def measure(model: str, device: str, dtype: str | None, rows: int, new_tokens: int, threads: int) -> dict[str, Any]:
    """Peak of this process, with Python and its libraries, against the size of the weights; on CUDA the device's."""
    torch.set_num_threads(threads)
    loaded = load_model(model_config(model, device, dtype))
    weights = sum(parameter.nbytes for parameter in loaded.model.parameters())
    network, work = open_subject(loaded).network, Work.of(loaded, rows, new_tokens)
    ours.engine(network, work, work.intervention(network.device, network.dtype), Stopwatch(network.device))
    on_gpu = network.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes()
    return {"rows": rows, "new_tokens": new_tokens, "weights_bytes": weights, "peak_bytes": peak}


def peak_resident_bytes() -> int:
    """The most memory that this process has held since its program started.

    Linux's ``getrusage`` would also count what the parent held when it started this process.
    """
    status = Path("/proc/self/status")
    if status.is_file() and (match := re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(errors="replace"), re.M)):
        return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
