"""The documents say what is there."""

import re
from pathlib import Path

import pytest
from methods_table import methods_table

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_the_readme_lists_every_method_as_its_yaml_describes_it():
    assert methods_table() in (ROOT / "README.md").read_text(), "print the table with tests/methods_table.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_contributing_names_every_part_of_the_package():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    parts = [
        path.name for path in (ROOT / "harness").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    assert [part for part in parts if not part.startswith("__") and part.removesuffix(".py") not in text] == []
