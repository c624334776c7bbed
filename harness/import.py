"""``python -m harness.import``: texts that other code wrote, as a run that can be scored and compared."""

from harness.commands.import_ import main

if __name__ == "__main__":
    raise SystemExit(main())
