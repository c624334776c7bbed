"""``python -m harness.laws``: does a plug-in keep the laws? A door to `harness.commands.laws`."""

from harness.commands.laws import main

if __name__ == "__main__":
    raise SystemExit(main())
