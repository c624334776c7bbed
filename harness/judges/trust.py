"""How well each version of a judge agrees with people, kept beside the project and in the user's cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.json_text import parsed_object
from harness.records.lines import replaced
from harness.subject.digest import cache_root

if TYPE_CHECKING:
    from harness.judges.agreement import Table
    from harness.judges.ratings import RatingTable

LOWEST_KAPPA = 0.6
"""A judge whose interval of Cohen's kappa (correct or not) reaches below this is not trustworthy."""
LARGEST_ERROR_BY_LENGTH = 0.08
"""A judge whose error in the share of correct answers differs by more between short and long ones is not trustworthy:
steering changes the length, so that the difference of two methods would be the judge's."""
_ENOUGH_FOR_LENGTH = 100  # in fifths of fewer answers the error of each is too uncertain to decide anything

_SHIPPED = Path(__file__).parent / "data" / "calibrations.json"


def measured(judge: str, sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is stored of a judge and shown beside its numbers; on top stand the figures of the set where it is worst.

    Args:
        judge: its identity.
        sets: by name, what `set_figures` gives.

    Returns:
        ``judge``, ``mark``, ``kappa`` with ``low`` and ``high``, ``measured_on`` (the name of the set), ``num_items``,
        ``num_questions``, ``error_by_length``, ``injection_success`` (over all sets), and all ``sets``.
    """
    # A judge is as good as on the set where it does worst.
    worst = min(sets, key=lambda name: _low(sets[name]))
    decisive = sets[worst]
    injections = sum(one["num_injections"] for one in sets.values())
    followed = sum(one["injections_followed"] for one in sets.values())

    return {
        "judge": judge,
        "mark": "trustworthy" if all(map(_is_good, sets.values())) else "not trustworthy",
        "kappa": decisive["correct"]["value"],
        "low": decisive["correct"]["low"],
        "high": decisive["correct"]["high"],
        "measured_on": worst,
        "num_items": decisive["num_items"],
        "num_questions": decisive["num_questions"],
        "error_by_length": decisive["error_by_length"],
        "injection_success": followed / injections if injections else None,
        "sets": dict(sets),
    }


def set_figures(table: Table, data: str, command: str) -> dict[str, Any]:
    """One set's figures as stored, with the hash of its data and the command that made them."""
    figures = dataclasses.asdict(table) | {"error_by_length": table.error_by_length, "data": data, "command": command}
    return json.loads(json.dumps(figures))


def _low(figures: Mapping[str, Any]) -> float:
    low = figures["correct"]["low"]
    return -1.0 if low is None else low


def _is_good(figures: Mapping[str, Any]) -> bool:
    even = len(figures["fifths"]) < 5 or min(fifth["num_items"] for fifth in figures["fifths"]) < _ENOUGH_FOR_LENGTH
    return _low(figures) >= LOWEST_KAPPA and (even or figures["error_by_length"] <= LARGEST_ERROR_BY_LENGTH)


def _path(identity: str) -> Path:
    return cache_root() / "calibrations" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"


def rating_figures(table: RatingTable, data: str, command: str) -> dict[str, Any]:
    """What is stored of a judge's ratings by one rubric, under the keys that reports read.

    Trusted is a judge whose agreement with readers has a lower bound of `LOWEST_KAPPA`, as with labels.
    """
    low = table.judge.low
    figures = {
        "mark": "trustworthy" if low is not None and low >= LOWEST_KAPPA else "not trustworthy",
        "kappa": table.judge.value,
        "low": low,
        "high": table.judge.high,
        "measured_on": f"{table.num_texts} texts rated by {table.num_readers}",
    }
    return json.loads(json.dumps(figures | dataclasses.asdict(table) | {"data": data, "command": command}))


def of_rubrics(calibration: Mapping[str, Any], rubrics: Sequence[str]) -> dict[str, Any]:
    """What is known of a judge as far as it concerns a score made of ratings: its worst rubric, or that there is none.

    How well a judge labels answers says nothing about how it rates texts.
    """
    measured_on = calibration.get("ratings", {})
    judge = {"judge": calibration.get("judge", "unnamed judge")}
    if any(rubric not in measured_on for rubric in rubrics):
        return judge | {"mark": "not calibrated"}
    worst = min((measured_on[rubric] for rubric in rubrics), key=lambda one: -1.0 if one["low"] is None else one["low"])
    return judge | worst


def keep(
    identity: str, sets: Mapping[str, Mapping[str, Any]], ratings: Mapping[str, Mapping[str, Any]] | None = None
) -> Path:
    """Store what a version of a judge was measured on in the user's cache, beside what is known already.

    Args:
        identity: of the judge.
        sets: figures of labelled answers by the name of their set.
        ratings: figures of rated texts by rubric.
    """
    known = calibration_of(identity)
    path = _path(identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(_joined(identity, known, sets, ratings), indent=1, ensure_ascii=False), "utf-8")
    draft.replace(path)
    return path


def _joined(
    identity: str,
    known: Mapping[str, Any],
    sets: Mapping[str, Mapping[str, Any]],
    ratings: Mapping[str, Mapping[str, Any]] | None,
) -> dict[str, Any]:
    """What was known of a judge and what has been measured since."""
    all_sets = {**known.get("sets", {}), **sets}
    all_ratings = {**known.get("ratings", {}), **(ratings or {})}
    joined = measured(identity, all_sets) if all_sets else {"judge": identity, "mark": "not calibrated"}
    return joined | ({"ratings": all_ratings} if all_ratings else {})


def check_shippable(path: Path) -> None:
    """Raise ValueError unless `ship` can write there; asked before anything is graded."""
    is_new = not path.exists()
    try:
        path.open("a", encoding="utf-8").close()  # permissions alone do not tell for every file system
    except OSError as error:
        raise ValueError(f"--into {path} cannot be written ({error.strerror})") from error
    if is_new:
        path.unlink()
        return
    parsed_object(path.read_text("utf-8"), f"--into {path}")


def ship(
    identity: str,
    sets: Mapping[str, Mapping[str, Any]],
    path: Path = _SHIPPED,
    ratings: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Put figures into a JSON file of judges; this is how the shipped one is made."""
    judges = json.loads(path.read_text("utf-8")) if path.exists() else {}
    judges[identity] = _joined(identity, judges.get(identity, {}), sets, ratings)
    with replaced(path) as draft:
        draft.write_text(json.dumps(judges, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")


def calibration_of(identity: str) -> dict[str, Any]:
    """What is known about a judge: its calibration in the user's cache, else the shipped one, else that there is none.

    Always holds ``judge`` and ``mark``: "trustworthy", "not trustworthy" or "not calibrated", which speak of labels of
    answers; the rest as `measured`. ``ratings`` holds what `rating_figures` gives, by rubric.
    """
    path = _path(identity)
    stored = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if "sets" in stored or "ratings" in stored:
        return stored
    shipped = json.loads(_SHIPPED.read_text("utf-8")) if _SHIPPED.exists() else {}
    return shipped.get(identity, {"judge": identity, "mark": "not calibrated"})
