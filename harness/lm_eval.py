"""``python -m harness.lm_eval``: lm-evaluation-harness on a steered model. A door to `harness.bridges.lm_eval`."""

import sys


def main() -> int:
    """Run it, or say what is missing."""
    try:
        from harness.bridges import lm_eval
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        print("lm_eval is not installed: pip install 'steering-harness[lm-eval]'", file=sys.stderr)
        return 2
    return lm_eval.main()


if __name__ == "__main__":
    raise SystemExit(main())
