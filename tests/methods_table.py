"""The table of methods in the README, made of the YAMLs: ``PYTHONPATH=. python tests/methods_table.py`` prints it."""

from pathlib import Path

from harness.commands.help import first_sentence
from harness.config import composed, plain_values
from harness.nodes import built
from harness.types import Method

CONF = Path(__file__).parents[1] / "conf" / "method"
NEEDS = {
    "pairs": "contrast pairs",
    "texts": "texts of two kinds",
    "labels": "labelled texts",
    "gold": "**the answer**",
    "concept": "the concept's words",
}


def needs(name: str) -> str:
    """What a method is shown, in words."""
    if name == "vector":  # cannot be built without its file
        return "a file"
    values = plain_values(composed([f"method={name}", "tracking=none"])[0])
    method = built(values["method"], Method, "method")
    return ", ".join(NEEDS[str(access)] for access in sorted(method.access)) or "nothing"


def methods_table() -> str:
    """A row for every YAML: name, first sentence, needs."""
    rows = ["| method | what it is | needs |", "|---|---|---|"]
    for path in sorted(CONF.glob("*.yaml")):
        rows.append(f"| `{path.stem}` | {first_sentence(path.read_text())} | {needs(path.stem)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(methods_table())
