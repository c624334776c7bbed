"""What stands in ``conf``: the names of all YAMLs of a group, and the class behind each."""

from __future__ import annotations

from pathlib import Path

import yaml
from hydra.utils import get_class

CONF = Path(__file__).parents[2] / "conf"


def names_of(group: str) -> list[str]:
    """Every YAML of a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def class_of(group: str, name: str) -> type:
    """The class that a YAML names, or the YAML that it starts from."""
    node = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    return get_class(node["_target_"]) if "_target_" in node else class_of(group, node["defaults"][0])


def trained(name: str) -> bool:
    """Whether the method of a YAML, or of the YAML that it starts from, has a training among its options."""
    text = (CONF / "method" / f"{name}.yaml").read_text()
    node = yaml.safe_load(text)
    if "_target_" not in node:
        return trained(node["defaults"][0])
    return "_target_: harness.training.Training" in text
