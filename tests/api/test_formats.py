"""Vectors in other tools' files: each is applied with that tool, and its tokens are ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from steering_parts import PAIRS, QUESTIONS, generated
from transformers import AutoModelForCausalLM

import harness
from harness.commands.export import export, main
from harness.steering import Site
from harness.vectors.formats import read_vectors

AT = {"layer": 1.0, "strength": 4.0}


@pytest.fixture(scope="module")
def bundle(vector: harness.Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vector.at(**AT).save(tmp_path_factory.mktemp("bundle") / "v.safetensors")


@pytest.fixture(scope="module")
def expected(model: harness.Model, vector: harness.Fitted) -> list[str]:
    return model.generate(QUESTIONS, steer=vector.at(**AT), max_new_tokens=12)


def imported(model: harness.Model, path: Path, tmp_path: Path) -> list[str]:
    """Completions of a run with ``method=vector`` on our questions."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"question": q, "answer": "x"}) + "\n" for q in QUESTIONS))
    job = ["method=vector", f"method.path={path}", f"task.path={questions}", "task.max_new_tokens=12"]
    result = harness.compare([job], model, out=tmp_path / "runs")
    record = json.loads((result.runs[0] / "run.json").read_text())
    store = result.runs[0] / record["generations"]
    from harness.records.store import GenerationStore

    return [item.record.generation.text for item in GenerationStore(store).selected()]


def test_repeng(model, plain, bundle, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "float_", np.float64, raising=False)  # its name in numpy 1, for which repeng is written
    control = pytest.importorskip("repeng", reason="repeng is not installed")
    path, note = export(bundle, "repeng", tmp_path / "v.gguf")
    assert "caa with layer = 1, strength = 4" in note
    read = control.ControlVector.import_gguf(path)
    wrapped = control.ControlModel(plain, [1])
    wrapped.set_control(read)
    steered = generated(wrapped, model, QUESTIONS)
    assert steered == expected == imported(model, path, tmp_path)


def test_steering_vectors(model, plain, bundle, expected, tmp_path):
    package = pytest.importorskip("steering_vectors", reason="steering-vectors is not installed")
    path, _ = export(bundle, "steering-vectors", tmp_path / "v.pt")
    read = package.SteeringVector(**torch.load(path))
    with read.apply(plain):
        steered = generated(plain, model, QUESTIONS)
    assert steered == expected == imported(model, path, tmp_path)


def test_lm_eval(model, plain, bundle, expected, tmp_path):
    steered_models = pytest.importorskip("lm_eval.models.hf_steered", reason="lm-eval is not installed")
    path, _ = export(bundle, "lm-eval", tmp_path / "v.pt")
    hooks = {
        name: lambda h, item=item: steered_models.SteeredModel.add(
            h, item["steering_vector"] * item["steering_coefficient"], item["head_index"]
        )
        for name, item in torch.load(path, weights_only=False).items()
    }
    with steered_models.steer(plain, hooks):
        steered = generated(plain, model, QUESTIONS)
    assert steered == expected == imported(model, path, tmp_path)


def test_a_checkpoint_with_the_vector_inside(model, bundle, expected, tmp_path):
    folder, _ = export(bundle, "hf", tmp_path / "steered")
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    assert generated(loaded, model, QUESTIONS) == expected
    again = harness.load(folder, dtype="float64", chat_template=True)
    assert again.generate(QUESTIONS, max_new_tokens=12) == expected


def test_a_bundle_goes_through_the_command_line_too(model, bundle, expected, tmp_path):
    assert imported(model, bundle, tmp_path) == expected


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors"])
def test_a_bare_tensor_needs_its_layer(suffix, tmp_path):
    vector, path = torch.arange(4.0), tmp_path / f"v{suffix}"
    save = {
        ".npy": lambda: np.save(path, vector.numpy()),
        ".pt": lambda: torch.save(vector, path),
        ".safetensors": lambda: save_file({"direction": vector}, path),
    }
    save[suffix]()
    with pytest.raises(ValueError, match=r"does not say of which layer: set method\.layer=N"):
        read_vectors(path)
    (site, read), *more = read_vectors(path, layer=2, stream="mlp").items()
    assert (site, more) == (Site(2, "mlp"), [])
    assert torch.equal(read, vector)


def test_a_pickled_object_is_not_run(tmp_path):
    class Loud:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # pyright: ignore[reportReturnType]

    torch.save(Loud(), tmp_path / "v.pt")
    with pytest.raises(ValueError, match="without running code from it"):
        read_vectors(tmp_path / "v.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("settings", "tool", "message"),
    [
        ({"tokens": "predicting"}, "repeng", "adds to every token; this method steers 'predicting' tokens only"),
        ({"stream": "mlp"}, "gguf", "adds to the outputs of blocks only, not at 1.mlp"),
        ({"stream": "heads"}, "lm-eval", "adds to outputs of modules only, not at 1.heads"),
        ({"stream": "heads"}, "hf", "at the outputs of blocks or MLPs"),
    ],
)
def test_what_a_tool_cannot_do_is_refused(model, settings, tool, message, tmp_path):
    options = {"tokens": "all", "extract": "answer_mean", **settings}
    path = harness.fit("caa", model, pairs=PAIRS, **options).at(**AT).save(tmp_path / "v.safetensors")
    with pytest.raises(ValueError, match=message):
        export(path, tool)


def test_what_is_no_addition_is_refused(model, tmp_path):
    path = harness.fit("linear_act", model, pairs=PAIRS).save(tmp_path / "v.safetensors")
    with pytest.raises(ValueError, match=r"does more at .* than add a vector"):
        export(path, "repeng")


def test_llama_cpp_has_no_first_layer(bundle, tmp_path):
    with pytest.raises(ValueError, match="no state behind layer 0"):
        export(bundle, "gguf", tmp_path / "v.gguf", ["layer=0"])


def test_the_command_says_what_it_wrote_or_why_not(bundle, tmp_path, capsys):
    assert main([str(bundle), "--to", "gguf", "--out", str(tmp_path / "v.gguf"), "--set", "strength=2"]) == 0
    assert "strength = 2: 1 vectors, 1.block" in capsys.readouterr().out
    assert main([str(bundle), "--to", "gguf", "--set", "strenth=2"]) == 2
    assert "there is no parameter 'strenth'; caa has layer, strength" in capsys.readouterr().err
    assert main([str(tmp_path / "absent.safetensors")]) == 2
    assert "bundle not found" in capsys.readouterr().err


def test_a_run_is_exported_with_what_it_found(model, tmp_path):
    small = ["num_trials=2", "task.dev_size=4", "task.train_size=8", "task.max_new_tokens=4"]
    result = harness.compare([["method=caa", "method.tokens=all"]], model, limit=3, out=tmp_path, overrides=small)
    path, _ = export(result.runs[0], "bundle")
    note = harness.load_vector(path).bundle.note
    record = json.loads((result.runs[0] / "run.json").read_text())
    assert note.parameters == record["parameters"]
    assert note.scores["overlap"].value == record["estimates"]["overlap"]["value"]
    assert note.access == ("pairs",)
    assert export(result.runs[0], "repeng")[0].suffix == ".gguf"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "vector file not found"),
        (["method.layer=1"], "a bundle says this itself; set method.values.layer"),
        (["+method.values.strenth=1"], r"there is no parameter 'strenth' \(it has layer, strength\)"),
        (["method.sha256=abc"], "has SHA-256"),
        (["model.family=gpt2"], None),
    ],
)
def test_wrong_settings_of_a_vector_are_named(bundle, overrides, message, tmp_path):
    from harness.build import build
    from harness.config import composed

    path = tmp_path / "absent.safetensors" if not overrides else bundle
    job = ["model=tiny", "method=vector", f"method.path={path}", "tracking=none", *overrides]
    if message is None:
        assert build(*composed(job)).method.check
        return
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(*composed(job))
