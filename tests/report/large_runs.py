"""How compare copes with large runs: ``python tests/report/large_runs.py --examples 10000 --entries 12 --trials 0``.

Writes made-up runs of that size, compares them in a process of its own, and prints seconds of CPU, the peak of memory,
and bytes on disk. ``docs/scale.md`` takes its constants from here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import zstandard
from sample_runs import write_run

METHODS = ("caa", "diffmean", "iti", "dsas", "reft_r1", "lat", "pca", "cast", "sadi", "pid", "lora", "angular")

COMPARE = """
import re, time
from pathlib import Path
from harness.commands.compare import main
main()
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(time.process_time(), peak)
"""
"""Compares, then prints seconds and KiB of its own: `resource` would count the memory of its parent too."""


def write_runs(folder: Path, examples: int, entries: int, trials: int) -> None:
    """An un-steered run and others beside it; with trials, these are searched per prompt."""
    write_run(folder, "baseline", count=examples)
    for number in range(entries - 1):
        method, repeat = METHODS[number % len(METHODS)], number // len(METHODS)
        options = {"search": "per_prompt", "trials": trials, "oracle": True} if trials else {"strength": 0.1}
        control = ("none", "shuffled", "random")[repeat % 3]
        write_run(folder, method, control=control, count=examples, skill=0.3 + 0.01 * number, **options)


def compressed_share(path: Path) -> float:
    """What compression leaves of a file, on its first 32 MB."""
    with path.open("rb") as file:
        start = file.read(32_000_000)
    return len(zstandard.ZstdCompressor(level=9).compress(start)) / len(start)


def main() -> None:
    """Write, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--entries", type=int, default=12)
    parser.add_argument("--trials", type=int, default=0, help="trials per example of every entry but the first")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="large-runs-") as place:
        runs = Path(place)
        write_runs(runs, options.examples, options.entries, options.trials)
        command = [sys.executable, "-c", COMPARE, str(runs), "--out", str(runs / "report")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        seconds, peak = done.stdout.split()[-2:]
        print(f"{options.examples:,} examples x {options.entries} entries x {options.trials} trials")
        print(f"compare: {float(seconds):.0f} s of CPU, {int(peak) / 1024:.0f} MiB at most")
        print(f"page: {(runs / 'report' / 'report.html').stat().st_size / 1e6:.1f} MB")
        for name in ("generations.jsonl", "trials.jsonl"):
            files = sorted(runs.glob(f"generations/*/{name}"))
            if files:
                rows = sum(path.read_bytes().count(b"\n") for path in files)
                size = sum(path.stat().st_size for path in files)
                share = compressed_share(files[0])
                print(f"{name}: {size / rows:.0f} bytes a row, {size * share / rows:.0f} compressed, {rows:,} rows")


if __name__ == "__main__":
    main()
