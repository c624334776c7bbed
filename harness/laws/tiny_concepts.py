"""A folder with a few concepts in AxBench's layout, for methods that read concepts in words."""

import tempfile
from functools import cache
from pathlib import Path

from harness.laws.axbench_data import write_folder


@cache
def concepts_folder() -> Path:
    """Three concepts with four texts each."""
    return write_folder(Path(tempfile.mkdtemp(prefix="tiny-concepts-")))
