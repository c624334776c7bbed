"""``python -m harness.doctor``: what a run needs, and whether it can start.

A door to `harness.commands.doctor`, imported by nothing.
"""

from harness.commands.doctor import main

if __name__ == "__main__":
    raise SystemExit(main())
