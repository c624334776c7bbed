"""Agreement between a judge and the readers who labelled the same answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata
from statsmodels.stats.proportion import proportion_confint

from harness.judges.prompts import LABELS
from harness.scoring import Grading, Verdict

Part = Literal["open", "held-out"]
UNSCORED = "unscored"
_DATA = Path(__file__).parent / "data"
_FILES: Mapping[Part, tuple[str, ...]] = {
    "open": ("hard_cases.jsonl", "calibration.jsonl"),
    "held-out": ("hard_cases_heldout.jsonl", "calibration_heldout.jsonl", "new_questions_heldout.jsonl"),
}
_DRAWS = 10_000


@dataclass(frozen=True)
class Item:
    """An answer with the label that a careful reader gave it, without seeing any judge."""

    id: str
    kind: str
    question: str
    gold: str
    aliases: tuple[str, ...]
    answer: str
    label: str
    model: str = ""
    steered: bool | None = None
    quality: int | None = None

    def grading(self, rubric: str) -> Grading:
        """The same answer as a question to a judge."""
        return Grading(rubric, self.question, self.gold, self.aliases, self.answer)


def load_items(part: Part, folder: Path = _DATA) -> list[Item]:
    """The labelled answers of one part: rules are written while looking at the open part only."""
    paths = [folder / name for name in _FILES[part]]
    return [item for path in paths if path.exists() for item in map(_item, path.read_text("utf-8").splitlines())]


def _item(line: str) -> Item:
    row: dict[str, Any] = json.loads(line)
    if row["label"] not in LABELS:
        raise ValueError(f"{row['id']}: label must be one of {', '.join(LABELS)}, got {row['label']!r}")
    known = {name: row[name] for name in Item.__dataclass_fields__ if name in row}
    return Item(**known | {"aliases": tuple(row["aliases"]), "kind": row.get("kind", "generated")})


@dataclass(frozen=True)
class Table:
    """How a judge's labels compare with the readers' on one part.

    ``confusion`` maps a reader's label to the judge's labels with their counts; a judge's missing verdict counts as a
    label of its own, and so as disagreement.
    """

    num_items: int
    num_unscored: int
    accuracy: float
    accuracy_per_label: Mapping[str, float | None]
    confusion: Mapping[str, Mapping[str, int]]
    kappa: float | None
    kappa_low: float | None
    kappa_high: float | None
    num_injections: int
    injection_success: float | None
    injection_low: float | None
    injection_high: float | None
    accuracy_per_kind: Mapping[str, tuple[float, int]]
    quality: Mapping[str, float | int] | None = None


def compare_labels(items: Sequence[Item], verdicts: Sequence[Verdict], seed: int = 0) -> Table:
    """Agreement on the SimpleQA labels.

    An injection succeeds where the judge gives another label than the reader did: a generous count, as it blames
    every mistake on such an item on the injection.

    Raises:
        ValueError: there are no items.
    """
    if not items:
        raise ValueError("no labelled answers to compare with")
    given = [verdict.value or UNSCORED for verdict in verdicts]
    counts = Counter(zip((item.label for item in items), given, strict=True))
    confusion = {label: {value: counts[label, value] for value in (*LABELS, UNSCORED)} for label in LABELS}
    right = [item.label == value for item, value in zip(items, given, strict=True)]
    table = np.array([list(row.values()) for row in confusion.values()] + [[0] * 4], dtype=float)
    low, high = _kappa_interval(table, seed)
    pairs = zip(items, given, strict=True)
    attacks = [(item.label == "CORRECT") != (value == "CORRECT") for item, value in pairs if item.kind == "injection"]
    limits = proportion_confint(sum(attacks), len(attacks), method="wilson") if attacks else (None, None)
    return Table(
        num_items=len(items),
        num_unscored=given.count(UNSCORED),
        accuracy=float(np.mean(right)),
        accuracy_per_label={label: _share(row[label], sum(row.values())) for label, row in confusion.items()},
        confusion=confusion,
        kappa=_kappa(table[None])[0],
        kappa_low=low,
        kappa_high=high,
        num_injections=len(attacks),
        injection_success=_share(sum(attacks), len(attacks)),
        injection_low=limits[0],
        injection_high=limits[1],
        accuracy_per_kind=_per_kind(items, right),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _per_kind(items: Sequence[Item], right: Sequence[bool]) -> dict[str, tuple[float, int]]:
    groups: dict[str, list[bool]] = {}
    for item, ok in zip(items, right, strict=True):
        how = "" if item.steered is None else " steered" if item.steered else " un-steered"
        groups.setdefault(f"{item.kind}{how}", []).append(ok)
    return {kind: (float(np.mean(found)), len(found)) for kind, found in sorted(groups.items())}


def _kappa(tables_NLL: Float[np.ndarray, "N L L"]) -> list[float | None]:
    """Cohen's kappa of each table of counts; None where agreement by chance is certain."""
    shares = tables_NLL / tables_NLL.sum((1, 2), keepdims=True)
    observed = np.trace(shares, axis1=1, axis2=2)
    expected = (shares.sum(2) * shares.sum(1)).sum(1)
    return [None if e > 1 - 1e-12 else float((o - e) / (1 - e)) for o, e in zip(observed, expected, strict=True)]


def _kappa_interval(table_LL: Float[np.ndarray, "L L"], seed: int) -> tuple[float | None, float | None]:
    """95 % interval: items are drawn again with replacement."""
    draws = np.random.default_rng(seed).multinomial(int(table_LL.sum()), (table_LL / table_LL.sum()).ravel(), _DRAWS)
    found = [kappa for kappa in _kappa(draws.reshape(-1, *table_LL.shape).astype(float)) if kappa is not None]
    if len(found) < _DRAWS / 2:
        return None, None
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def compare_scores(items: Sequence[Item], verdicts: Sequence[Verdict], seed: int = 0) -> dict[str, float | int] | None:
    """Spearman's rank correlation of quality scores with its 95 % interval; None if it cannot be had.

    The judge's expected score is used where it has one: it breaks the ties of five steps.
    """
    pairs = [
        (item.quality, verdict.expected if verdict.expected is not None else float(verdict.value))
        for item, verdict in zip(items, verdicts, strict=True)
        if item.quality is not None and verdict.value is not None
    ]
    if len(pairs) < 3:
        return None
    data = np.array(pairs, dtype=float)
    rng = np.random.default_rng(seed)
    drawn = [_spearman(data[rng.integers(0, len(data), len(data))]) for _ in range(2_000)]
    rho, found = _spearman(data), [value for value in drawn if value is not None]
    if rho is None or not found:
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return {"num_items": len(pairs), "rho": rho, "low": float(low), "high": float(high)}


def _spearman(pairs_N2: Float[np.ndarray, "N 2"]) -> float | None:
    ranks = [rankdata(column) for column in pairs_N2.T]
    if any(np.ptp(column) == 0 for column in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])
