"""``python -m harness.import_samples``: what lm-evaluation-harness or Inspect scored, as runs that can be compared."""

from harness.commands.import_samples import main

if __name__ == "__main__":
    raise SystemExit(main())
