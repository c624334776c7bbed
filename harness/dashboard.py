"""``python -m harness.dashboard``: a W&B report over published runs.

A door to `harness.commands.dashboard`, imported by nothing.
"""

from harness.commands.dashboard import main

if __name__ == "__main__":
    raise SystemExit(main())
