"""``python -m harness.export``: what a run found, for other tools. A door to `harness.commands.export`."""

from harness.commands.export import main

if __name__ == "__main__":
    raise SystemExit(main())
