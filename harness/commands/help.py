"""``python -m harness --help``: what can be chosen, one sentence for each. Reads the YAMLs' first comments only."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator
from importlib import resources

_GROUPS = {
    "method": "what steers",
    "task": "what is asked, and what methods learn from",
    "model": "which model is steered",
    "search": "how strengths and layers are chosen",
    "control": "what a gain must beat",
    "evaluator": "how answers are scored (a list: evaluator=[token_overlap,perplexity])",
    "judge": "who grades answers for evaluators that need it",
    "objective": "what a search maximises",
    "scorer": "which un-steered model says how likely a text is",
    "protocol": "which examples and trials count",
    "experiment": "whole studies",
    "tracking": "where results are sent",
    "executor": "who does the work of one job",
}
"""Groups in the order in which somebody new meets them."""

_HEAD = """\
Compare activation-steering methods on the same prompts, with the same budget.

  steer method=caa                               one run (python -m harness is the same)
  steer -m method=baseline,caa,segmented         several, compared with tests
  steer method=caa controls=auto                 a method with the controls that fit it
  steer experiment=smoke                         a first table in a minute
  steer method=caa model=hf model.id=OWNER/NAME  your model
  steer method=caa task.path=FILE                your data

Choices are written GROUP=NAME, options GROUP.OPTION=VALUE; lists in a shell are quoted: 'evaluator=[choice]'.
"""

_FOOT = """\
  --cfg job        print the composed configuration of a run
  -m, --multirun   run every combination of values that are separated by commas
  --hydra-help     options of Hydra, which composes the configuration

More commands, each with --help: python -m harness.NAME, where NAME is compare, score, export, import, lm_eval, doctor,
calibrate, dashboard or bench.
"""


def help_text() -> str:
    """All of it, as wide as the terminal."""
    width = min(shutil.get_terminal_size((100, 40)).columns, 120)
    parts = [_HEAD]
    for group in (*_GROUPS, *sorted(set(_groups()) - _GROUPS.keys())):
        title = f"{group}=…  {_GROUPS.get(group, '')}".rstrip()
        choices = list(_choices(group))
        longest = max((len(name) for name, _ in choices), default=0)
        lines = [_line(name, sentence, longest, width) for name, sentence in choices]
        parts.append("\n".join([title, *lines, ""]))
    return "\n".join([*parts, _FOOT])


def _groups() -> Iterator[str]:
    for folder in resources.files("conf").iterdir():
        if folder.is_dir() and folder.name not in ("hydra", "__pycache__"):
            yield folder.name


def _choices(group: str) -> Iterator[tuple[str, str]]:
    """Name and first sentence of every YAML of a group."""
    files = [file for file in resources.files("conf").joinpath(group).iterdir() if file.name.endswith(".yaml")]
    for file in sorted(files, key=lambda file: file.name):
        yield file.name[:-5], first_sentence(file.read_text(encoding="utf-8"))


def first_sentence(text: str) -> str:
    """The first sentence of the comment at the top of a YAML; "" if there is none."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if line.startswith("# @package"):  # Hydra's, not the reader's
            continue
        lines.append(line.lstrip("# "))
    comment = " ".join(lines)
    end = re.search(r"(?<!\bal)\. ", comment)  # "et al. 2024" goes on
    return comment if end is None else comment[: end.start() + 1]


def _line(name: str, sentence: str, longest: int, width: int) -> str:
    return textwrap.fill(
        sentence,
        width,
        initial_indent=f"  {name:<{longest}}  ",
        subsequent_indent=" " * (longest + 4),
        break_on_hyphens=False,
    ) or f"  {name}"  # fmt: skip
