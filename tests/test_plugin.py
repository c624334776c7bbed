"""A method and an evaluator of somebody else's, in a package of their own: run, and held to the same laws."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from harness.commands import laws
from harness.laws import edits as edit_laws
from harness.laws import evaluators as evaluator_laws
from harness.laws import methods as method_laws
from harness.laws.lab import Lab, job_of, one_thread

METHOD = '''
"""A method of somebody else's."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from harness.types import Access, Edit, Intervention, Method, Range, Site


@dataclass(frozen=True, eq=False)
class Scale(Edit):
    factor: torch.Tensor

    def apply(self, h, where, carry):
        return where.keep(h * self.factor[:, None, None].to(h), h, "predicting"), carry


@dataclass(frozen=True, kw_only=True)
class Loudness(Method):
    requires: ClassVar = frozenset({"pairs"})
    access: ClassVar = frozenset({Access.PAIRS})
    site_layer: int = 1
    loudness: float | Range = Range(low=0.0, high=2.0, default=0.5)

    def check(self, layout):
        super().check(layout)
        layout.check_layer("site_layer", self.site_layer)

    def null(self, layout):
        return {"loudness": 0.0}

    def fit(self, subject, data):
        site = Site(self.site_layer)
        found = subject.capture([pair.prompt for pair in data.pairs], [pair.positive for pair in data.pairs], [site])
        return {"usual": found[site].norm(dim=-1).mean()[None]}

    def intervention(self, artifact, condition, parameters):
        factor = 1 + parameters["loudness"] * torch.tanh(artifact["usual"])
        return Intervention({Site(self.site_layer): Scale(factor)})
'''
EVALUATOR = '''
"""An evaluator of somebody else's."""

from dataclasses import dataclass
from typing import ClassVar

from harness.types import Evaluator, Metric, Score


@dataclass(frozen=True, kw_only=True)
class Length(Evaluator):
    metrics: ClassVar = (Metric("characters", higher_is_better=True, low=0, high=10_000),)
    strip: bool = True

    def score(self, records, tools):
        return [self._score(record) for record in records]

    def _score(self, record):
        text = record.generation.text.strip() if self.strip else record.generation.text
        if not text.strip():
            return Score(record.example.id, "characters", None, "the completion is empty")
        return Score(record.example.id, "characters", float(len(text)))
'''
METHOD_YAML = """
defaults:
  - override /search@_global_.search: fixed
_target_: louder.steering.Loudness
instruction: ""
site_layer: 1
loudness:
  _target_: harness.types.Range
  low: 0.0
  high: 2.0
  default: 0.5
  log: false
  integer: false
"""
EVALUATOR_YAML = """# @package evaluator.length
_target_: louder.scoring.Length
strip: true
max_unscored: 1.0
"""
FILES = {
    "__init__.py": "",
    "steering.py": METHOD,
    "scoring.py": EVALUATOR,
    "conf/__init__.py": "",
    "conf/method/louder.yaml": METHOD_YAML,
    "conf/evaluator/length.yaml": EVALUATOR_YAML,
}
SMALL = ("model=tiny", "task.limit=4", "task.train_size=24", "task.max_new_tokens=4", "tracking=none")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the import path that holds the package ``louder``."""
    folder = tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        path = folder / "louder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip("\n"))
    return folder


@pytest.fixture
def importable(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The override that makes Hydra find the package's YAMLs."""
    monkeypatch.syspath_prepend(str(installed))
    yield "hydra.searchpath=[pkg://louder.conf]"
    for name in [name for name in sys.modules if name.partition(".")[0] == "louder"]:
        del sys.modules[name]


def run_harness(installed: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(installed), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-m", "harness", *SMALL, *overrides],
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"},
        cwd=installed,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def one_run(folder: Path) -> dict:
    records = list(folder.glob("*/run.json"))
    assert len(records) == 1
    return json.loads(records[0].read_text())


@pytest.mark.parametrize("place", ["pkg://louder.conf", "file://{installed}/louder/conf"])
def test_runs_from_the_command_line(installed: Path, tmp_path: Path, place: str) -> None:
    search = f"hydra.searchpath=[{place.format(installed=installed)}]"
    done = run_harness(installed, search, "method=louder", "evaluator=[length,token_overlap]", f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    info = one_run(tmp_path)
    assert info["status"] == "done"
    assert {"characters", "overlap", "contains_gold"} <= set(info["estimates"])
    assert info["oracle"] is False
    counted = info["estimates"]["characters"]
    assert counted["num_scored"] + counted["num_unscored"] == 4
    generations = next((tmp_path / "generations").glob("*/generations.jsonl"))
    rows = [json.loads(line) for line in generations.read_text().splitlines()]
    assert [row["parameters"] for row in rows] == [{"loudness": 0.5}] * 4


def test_an_evaluators_yaml_without_its_first_line_is_named(installed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "evaluator"
    folder.mkdir(parents=True)
    (folder / "length.yaml").write_text(EVALUATOR_YAML.partition("\n")[2])
    done = run_harness(installed, f"hydra.searchpath=[file://{folder.parent}]", "evaluator=[length]", f"out={tmp_path}")
    assert done.returncode != 0
    assert "must begin with the line '# @package evaluator.NAME'" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_search_path_it_is_unknown(installed: Path, tmp_path: Path) -> None:
    done = run_harness(installed, "method=louder", f"out={tmp_path}")
    assert done.returncode != 0
    assert "louder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def lab(importable: str) -> Iterator[Lab]:
    """Their method, fitted on the tiny model."""
    with one_thread():
        yield Lab.of(job_of([*SMALL, "task.limit=6", "model.dtype=float64", importable, "method=louder"]))


def test_their_method_keeps_the_laws(lab: Lab, tmp_path: Path) -> None:
    for law in (*method_laws.GENERAL, *edit_laws.STEERING):
        law(lab)
    method_laws.artifact_survives_save_and_load(lab, tmp_path)


def test_their_evaluator_keeps_the_laws(importable: str) -> None:
    job = job_of([*SMALL, importable, "method=louder", "evaluator=[length]"])
    for law in evaluator_laws.LAWS:
        law(job.scoring.evaluators["length"])


def test_the_laws_command_holds_their_plugins_to_them(importable: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert laws.main([importable, "method=louder", "task.limit=6"]) == 0
    assert "22 laws hold" in capsys.readouterr().out
    assert laws.main([importable, "evaluator=length"]) == 0
    assert "7 laws hold" in capsys.readouterr().out


def test_the_laws_command_names_what_is_broken(
    importable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from louder import steering  # pyright: ignore[reportMissingImports]

    def in_place(_edit, h, _where, carry):
        return h.mul_(1.5), carry

    monkeypatch.setattr(steering.Scale, "apply", in_place)
    assert laws.main([importable, "method=louder"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "edits are pure broken" in printed
    assert "fit is deterministic holds" in printed


@pytest.mark.parametrize(
    ("command", "reason"),
    [(["method=louder"], "method=louder does not exist"), (["task=facts"], "name one plug-in")],
)
def test_the_laws_command_refuses_in_one_line(
    command: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert laws.main(command) == 2
    assert reason in capsys.readouterr().err


def test_their_method_goes_behind_a_gate(importable: str) -> None:
    job = job_of([*SMALL, "task=behaviors", importable, "method=dsas", "method@method.inner=louder"])
    assert set(job.method.parameters(job.layout)) == {"strength", "inner.loudness"}


def test_their_yaml_states_every_parameter(importable: str) -> None:
    job = job_of([*SMALL, importable, "method=louder", "evaluator=[length]"])
    for made, text in ((job.method, METHOD_YAML), (job.scoring.evaluators["length"], EVALUATOR_YAML)):
        stated = set(yaml.safe_load(text)) - {"_target_", "defaults"}
        assert stated == {item.name for item in dataclasses.fields(made)}
