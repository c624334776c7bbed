"""How threads wait for one another: decided before torch is loaded, unless the user decided."""

import os
import subprocess
import sys

import pytest

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000", "OMP_WAIT_POLICY": None}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7", "OMP_WAIT_POLICY": None}),
        ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": None, "OMP_WAIT_POLICY": "active"}),
    ],
)
@pytest.mark.parametrize("module", ["harness.subject.load", "harness.api.model", "harness.job"])
def test_threads_sleep_soon_unless_the_user_decides(
    module: str, given: dict[str, str], expected: dict[str, str | None]
):
    """Seen from inside the import of torch, since OpenMP reads the variables there and never again."""
    program = (
        "import sys, os, importlib.abc\n"
        "class Watch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        f"            print([os.environ.get(each) for each in {NAMES!r}], flush=True)\n"
        "            os._exit(0)\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"import {module}\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | given
    child = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert child.stdout.strip() == repr([expected[name] for name in NAMES]), child.stderr
