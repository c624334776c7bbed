"""Writes a small Llama with random weights as a GGUF file, the way llama.cpp's converter lays it out."""

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

WIDTH, INNER, HEADS, LAYERS = 32, 64, 4, 2
WORDS = ["<unk>", "<s>", "</s>", "Ġ", "Ċ", *"abcdefghijklmnopqrstuvwxyz0123456789", "Ġa", "ab", "ĠĠ"]
CHAT = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"


def write_gguf(path: Path, *, seed: int = 0, architecture: str = "llama") -> Path:
    """Write the file and return its path."""
    writer = GGUFWriter(str(path), architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    _write_tokenizer(writer)

    random = np.random.default_rng(seed)
    for name, shape in _shapes().items():
        values = np.ones(shape) if "norm" in name else random.normal(size=shape) / 4
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_tokenizer(writer: GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["Ġ a", "a b", "Ġ Ġ"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT)


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (len(WORDS), WIDTH),
        "output_norm": (WIDTH,),
        "output": (len(WORDS), WIDTH),
    }
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        shapes |= {f"{block}.{name}": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"{block}.{name}": (WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"{block}.{name}": (INNER, WIDTH) for name in ("ffn_gate", "ffn_up")}
        shapes[f"{block}.ffn_down"] = (WIDTH, INNER)
    return shapes
