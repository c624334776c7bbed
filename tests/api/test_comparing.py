"""Comparing methods from Python."""

import json

import pytest

import harness

SMALL = ["num_trials=2", "task.dev_size=4", "task.train_size=8", "task.max_new_tokens=4"]


def test_methods_and_a_vector_in_hand_share_one_table(model, vector, tmp_path, capsys):
    entries = ["baseline", "caa", vector.at(layer=1, strength=2)]
    result = harness.compare(entries, model, limit=3, out=tmp_path, overrides=SMALL)
    assert len(result.runs) == 3
    assert result.report.is_file()
    result.show()
    shown = capsys.readouterr().out
    assert "baseline" in shown
    assert "caa" in shown
    assert "vector" in shown

    run = json.loads((result.runs[2] / "run.json").read_text())
    assert run["parameters"] == {"layer": 1.0, "strength": 2.0}
    assert run["receipt"]["sites"]["1.block"]["relative_change"] > 0
    assert run["access"] == ["pairs"]


def test_what_was_computed_is_read_again(model, tmp_path):
    first = harness.compare(["baseline"], model, limit=3, out=tmp_path, overrides=SMALL)
    stamp = (first.runs[0] / "run.json").stat().st_mtime_ns
    second = harness.compare(["baseline"], model, limit=3, out=tmp_path, overrides=SMALL)
    assert second.runs == first.runs
    assert (first.runs[0] / "run.json").stat().st_mtime_ns == stamp


def test_controls_come_along_when_asked_for(model, tmp_path):
    result = harness.compare(["caa"], model, limit=2, controls=True, out=tmp_path, overrides=SMALL)
    labels = [json.loads((run / "run.json").read_text())["labels"] for run in result.runs]
    entries = {(label["method"], label["control"]) for label in labels}
    assert {("baseline", "none"), ("caa", "none"), ("caa", "shuffled"), ("caa", "random")} <= entries


def test_a_model_in_hand_is_compared_without_being_loaded_again(model, plain, tokenizer, vector, tmp_path):
    taken = harness.load(plain, tokenizer=tokenizer)
    result = harness.compare(["baseline", vector], taken, limit=2, out=tmp_path, overrides=SMALL)
    record = json.loads((result.runs[0] / "run.json").read_text())
    assert record["provenance"]["model_identity"].startswith("memory:")
    assert record["labels"]["model"] == taken.name


def test_a_bare_name_is_no_list_of_methods(model):
    with pytest.raises(ValueError, match="entries must be a list"):
        harness.compare("baseline", model)  # pyright: ignore[reportArgumentType]
