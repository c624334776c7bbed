"""A file with vectors for the tiny models, for ``method=vector``."""

import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH = 64
"""Of every tiny model."""


@cache
def vector_file() -> Path:
    """Vectors of two layers, long enough to steer."""
    path = Path(tempfile.mkdtemp(prefix="tiny-vector-")) / "vectors.safetensors"
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, WIDTH, generator=generator)
    save_file({"layers.1": vectors[0], "layers.2": vectors[1]}, path)
    return path
