"""``python -m harness.compare``: compare finished runs. A door to `harness.commands.compare`, imported by nothing."""

from harness.commands.compare import main

if __name__ == "__main__":
    raise SystemExit(main())
