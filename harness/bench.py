"""``python -m harness.bench``: how fast steering is here; see BENCHMARKS.md.

The bench itself lies in tests/bench of a checkout: it is no part of the product, and nobody who runs methods needs it.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

_TESTS = Path(__file__).parents[1] / "tests"


def main() -> int:
    """Run the bench of the checkout that this file belongs to."""
    if not (_TESTS / "bench").is_dir():
        print(
            f"harness.bench runs in a checkout of the project's repository: {_TESTS / 'bench'} is not there, "
            "because an installed package leaves it out",
            file=sys.stderr,
        )
        return 1
    sys.path.insert(0, str(_TESTS))
    return importlib.import_module("bench.__main__").main()


if __name__ == "__main__":
    sys.exit(main())
