"""``python -m harness.calibrate``: how far a judge can be trusted, measured on labelled answers.

A door to `harness.commands.calibrate`, imported by nothing.
"""

from harness.commands.calibrate import main

if __name__ == "__main__":
    raise SystemExit(main())
