"""The commands: what ``python -m harness`` and its neighbours do with a command line."""

import sys

# Tables and reports hold dots, arrows and other people's words. A terminal whose encoding lacks one of them (LC_ALL=C,
# an old code page) shows a question mark; the command must not end with an error because of it.
if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
