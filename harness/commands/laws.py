"""Hold a method or an evaluator, perhaps somebody else's, to the laws that every plug-in of the harness keeps.

usage: python -m harness.laws method=NAME [family=llama|gemma2|gpt2|…] [OVERRIDE …]
       python -m harness.laws evaluator=NAME [OVERRIDE …]

A method is fitted on a tiny model with random weights, on the first shipped task that offers what it requires
(``task=NAME`` chooses another), and rows with parameters of their own go through the engine. It takes seconds to a
few minutes and needs neither a GPU nor a network. Plug-ins of a package of your own are found through
``hydra.searchpath=[pkg://PACKAGE.conf]``, as in a run. Exit status 0: every law holds; 1: one is broken; 2: the plug-in
could not be built.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Check = Callable[[], object]


@dataclass(frozen=True)
class Finding:
    """Whether one law holds.

    Args:
        law: its name, in words.
        meaning: the first sentence of its docstring.
        broken: what went wrong and where; empty if the law holds.
    """

    law: str
    meaning: str
    broken: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Check every law; exit status 0 if all hold, 1 if one is broken, 2 if the plug-in could not be built."""
    overrides = list(sys.argv[1:] if arguments is None else arguments)
    if not overrides or {"-h", "--help"} & set(overrides):
        print(__doc__)
        return 0 if overrides else 2

    try:
        checks = list(_checks(overrides))
    except Exception as error:  # a plug-in's own code runs here, and may fail in any way
        print(f"error: {str(error) if isinstance(error, ValueError) else _in_one_line(error)}", file=sys.stderr)
        return 2

    table = Table("law", "", "what it says, or how it is broken", box=SIMPLE_HEAD)
    broken = 0
    for name, meaning, check in checks:
        finding = Finding(name, meaning, _reason(check))
        broken += bool(finding.broken)
        mark = "[red]broken[/]" if finding.broken else "[green]holds[/]"
        table.add_row(escape(finding.law), mark, escape(finding.broken or finding.meaning))
    Console().print(table)
    print(f"{broken} of {len(checks)} laws are broken" if broken else f"all {len(checks)} laws hold")
    return 1 if broken else 0


def _checks(overrides: Sequence[str]) -> Iterator[tuple[str, str, Check]]:
    """Name, meaning and check of every law that the chosen plug-in has to keep."""
    chosen = dict(item.split("=", 1) for item in overrides if "=" in item)
    groups = [group for group in ("method", "evaluator") if group in chosen]
    if len(groups) != 1:
        raise ValueError(f"name one plug-in, method=NAME or evaluator=NAME; got {' '.join(overrides)}")
    others = [item for item in overrides if not item.startswith((f"{groups[0]}=", "family="))]
    if groups[0] == "method":
        yield from _method_checks(chosen["method"], chosen.get("family", "llama"), others)
    else:
        yield from _evaluator_checks(chosen["evaluator"], others)


def _method_checks(name: str, family: str, overrides: Sequence[str]) -> Iterator[tuple[str, str, Check]]:
    # Torch takes seconds to import: what a wrong command line says must not wait for it.
    from harness.laws import edits, methods
    from harness.laws.lab import Lab, job_for

    lab = Lab.of(job_for(name, *overrides, family=family))
    laws = [*methods.GENERAL, *(edits.STEERING if lab.job.method.steers else ())]
    for law in laws:
        yield *_named(law), partial(law, lab)
    saved = methods.artifact_survives_save_and_load
    yield *_named(saved), partial(saved, lab, Path(tempfile.mkdtemp(prefix="harness-laws-")))
    if methods.trains(lab.job.method):
        trained = methods.interrupted_training_ends_the_same
        yield *_named(trained), partial(trained, lab, Path(tempfile.mkdtemp(prefix="harness-laws-")))


def _evaluator_checks(name: str, overrides: Sequence[str]) -> Iterator[tuple[str, str, Check]]:
    from harness.config import composed
    from harness.laws import evaluators
    from harness.laws.lab import job_of
    from harness.nodes import class_of
    from harness.scoring import Evaluator

    name = name.strip("[]")
    chosen = f"evaluator=[{name}]"
    compares = class_of(
        composed([*overrides, chosen])[0].evaluator[name]["_target_"], Evaluator, "evaluator"
    ).compares_samples
    samples = ["task.num_samples=2", "task.temperature=1"] if compares else []
    job = job_of(["model=tiny", "tracking=none", "task=facts", *samples, *overrides, chosen])
    (evaluator,) = job.scoring.evaluators.values()
    laws = [
        *evaluators.LAWS,
        *(evaluators.WITH_TOOLS if evaluator.needs else ()),
        *(evaluators.WITH_CHOICES if evaluator.choices else ()),
    ]
    for law in laws:
        yield *_named(law), partial(law, evaluator)


def _named(law: Callable) -> tuple[str, str]:
    return law.__name__.replace("_", " "), (law.__doc__ or "").strip().splitlines()[0]


def _reason(check: Check) -> str:
    """Why the check failed, with the line that found it; empty if it did not."""
    try:
        check()
    except Exception as error:  # an author's mistake may show as any error
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{_in_one_line(error)} ({Path(place.filename).name}:{place.lineno}: {place.line})"
    return ""


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
