"""``--help``: one sentence for each choice, without importing what a run needs."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.commands.help import first_sentence, help_text

CONF = Path(__file__).parents[2] / "conf"
YAMLS = sorted(path for path in CONF.glob("*/*.yaml"))


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_choice_says_what_it_is_in_one_sentence(path):
    sentence = first_sentence(path.read_text())
    assert len(sentence) > 10, "the YAML begins with a sentence as a comment"
    assert sentence.endswith((".", ":"))
    assert f"  {path.stem} " in help_text()


def test_a_sentence_ends_at_its_full_stop_and_not_at_an_abbreviation():
    assert first_sentence("# One (Li et al. 2023),\n# two. Three.\nkey: 1") == "One (Li et al. 2023), two."
    assert first_sentence("key: 1\n# late") == ""


def test_help_is_printed_without_torch(tmp_path):
    code = (
        "import sys; sys.argv = ['steer', '--help']\n"
        "from harness.__main__ import console_main\n"
        "assert console_main() == 0\n"
        "assert not {'torch', 'transformers', 'scipy'} & sys.modules.keys(), 'imported too much'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "method=…" in done.stdout
    assert "caa" in done.stdout
