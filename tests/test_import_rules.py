"""Who may import whom: the part of the architecture that a linter's list of banned names cannot say."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
OPEN_TO_PLUGINS = {
    f"harness.{name}"
    for name in (
        *("types", "concepts", "directions", "probes", "text", "low_rank", "sparse", "text_learner", "training"),
        *("attention_blocks", "concept_texts", "velocity", "hypernetwork", "json_text"),
    )
}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Modules that a file imports; ``from package import name`` counts as ``package.name`` too."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", sources("methods", "evaluators"), ids=name_of)
def test_plugins_see_the_vocabulary_and_shared_maths_alone(path):
    modules = {name for name in imported(path) if name.split(".")[0] in ("harness", "methods", "evaluators", "conf")}
    foreign = {name for name in modules if name != "harness" and not name.startswith(tuple(OPEN_TO_PLUGINS))}
    assert not foreign, f"plug-ins import {sorted(OPEN_TO_PLUGINS)} only"


@pytest.mark.parametrize("path", sources("harness"), ids=name_of)
def test_harness_does_not_know_its_plugins(path):
    assert not {name for name in imported(path) if name.split(".")[0] in ("methods", "evaluators")}


def test_only_one_file_registers_hooks():
    calls = {
        name_of(path)
        for path in sources("harness", "methods", "evaluators")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith(("register_forward", "register_full_backward"))
    }
    assert calls == {"harness/subject/hooks.py"}, "steering goes through one file"
