"""GGUF files: converted once, whole or not at all, and named by their content."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_gguf import LAYERS, WIDTH, write_gguf
from transformers import AutoModelForCausalLM

from harness.subject import digest
from harness.subject.load import Loaded, ModelConfig, load_model, resolve


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(tmp_path) -> ModelConfig:
    return ModelConfig(kind="gguf", path=str(write_gguf(tmp_path / "small.gguf")), device="cpu")


def logits(loaded: Loaded, text: str) -> torch.Tensor:
    ids = loaded.tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        return loaded.model(ids).logits


def test_gguf_is_converted_once_and_equals_a_direct_load(cache, small):
    assert resolve(small).layout.width == WIDTH
    first = load_model(small)
    assert resolve(small).layout == first.layout
    assert first.layout.num_layers == LAYERS
    path = Path(str(small.path))
    direct = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    ids = first.tokenizer("ab ab", return_tensors="pt").input_ids
    assert torch.equal(first.model(ids).logits, direct(ids).logits)
    written = {item: item.stat().st_mtime_ns for item in (cache / "models").rglob("*.safetensors")}
    again = load_model(small)
    assert torch.equal(logits(again, "ab ab"), logits(first, "ab ab"))
    assert written == {item: item.stat().st_mtime_ns for item in (cache / "models").rglob("*.safetensors")}


def test_gguf_keeps_chat_template_and_splits_digits(cache, small):
    tokenizer = load_model(small).tokenizer
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "<s>ab"
    assert tokenizer.convert_ids_to_tokens(tokenizer("<s>ab  12 a").input_ids) == ["<s>", "ab", "ĠĠ", "1", "2", "Ġa"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


def test_identity_follows_the_content_of_the_file(cache, small, tmp_path):
    twin = dataclasses.replace(small, path=str(write_gguf(tmp_path / "twin.gguf")))
    other = dataclasses.replace(small, path=str(write_gguf(tmp_path / "other.gguf", seed=1)))
    assert load_model(small).identity == load_model(twin).identity
    assert load_model(small).identity != load_model(other).identity


def test_converted_model_can_be_quantised(cache, small):
    loaded = load_model(dataclasses.replace(small, quantization="int8"))
    assert torch.int8 in {weight.dtype for weight in loaded.model.parameters()}


def test_interrupted_conversion_leaves_nothing_behind(cache):
    folder = cache / "models" / "x"

    def fail(draft: Path) -> None:
        (draft / "half").write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        digest.build_once(folder, fail)
    assert [item.name for item in folder.parent.iterdir()] == ["x.lock"]
    digest.build_once(folder, lambda draft: (draft / "whole").touch())
    assert [item.name for item in folder.iterdir()] == ["whole"]


def test_second_process_waits_and_takes_what_the_first_built(tmp_path):
    code = """
import sys, time
from pathlib import Path
from harness.subject.digest import build_once
def write(draft):
    time.sleep(0.5)
    (draft / "by").write_text(sys.argv[2])
build_once(Path(sys.argv[1]), write)
print(Path(sys.argv[1], "by").read_text())
"""

    command = [sys.executable, "-c", code, str(tmp_path / "built")]
    running = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in ("a", "b")]
    seen = [process.communicate()[0].strip() for process in running]

    assert [process.returncode for process in running] == [0, 0]
    assert seen[0] == seen[1]
    assert seen[0] in ("a", "b")


def test_digest_is_remembered_until_the_file_changes(cache, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = digest.file_digest(path)
    notes = list((cache / "digests").iterdir())
    assert len(notes) == 1

    notes[0].write_text(json.dumps({**json.loads(notes[0].read_text()), "sha256": "remembered"}))
    assert digest.file_digest(path) == "remembered"

    path.write_bytes(b"two")
    os.utime(path, ns=(0, 0))
    assert digest.file_digest(path) not in ("remembered", first)

    notes[0].write_text("{torn")
    path.write_bytes(b"one")
    assert digest.file_digest(path) == first


def test_wrong_file_is_refused(cache, small):
    digest_wanted = 64 * "0"
    with pytest.raises(ValueError, match=rf"small\.gguf has sha256 [0-9a-f]{{64}}, expected {digest_wanted}: install"):
        resolve(dataclasses.replace(small, sha256=digest_wanted))


@pytest.mark.parametrize("action", [resolve, load_model])
def test_unreadable_gguf_is_one_line(cache, tmp_path, action):
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(write_gguf(tmp_path / "whole.gguf").read_bytes()[:200])
    foreign = write_gguf(tmp_path / "foreign.gguf", architecture="mamba9")
    for path in (torn, foreign):
        with pytest.raises(ValueError, match=f"{path.name} cannot be read as a GGUF model") as caught:
            action(ModelConfig(kind="gguf", path=str(path), device="cpu"))
        assert "\n" not in str(caught.value)
