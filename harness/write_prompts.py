"""``python -m harness.write_prompts``: have steering prompts written. A door to `harness.commands.write_prompts`."""

from harness.commands.write_prompts import main

if __name__ == "__main__":
    raise SystemExit(main())
