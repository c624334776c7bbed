"""``python -m harness.score``: score finished runs again. A door to `harness.commands.score`, imported by nothing."""

from harness.commands.score import main

if __name__ == "__main__":
    raise SystemExit(main())
