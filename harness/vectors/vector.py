"""``method=vector``: what somebody else found, put against controls like any other method."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from harness.data import Access, Example, FitData, Parameters
from harness.directions import AddVector
from harness.steering import Artifact, Intervention, Layout, Method, Range, Site, Stream, Tokens
from harness.vectors.bundle import Bundle, is_bundle, read_bundle
from harness.vectors.formats import read_vectors

if TYPE_CHECKING:
    from harness.model_view import Subject


@dataclass(frozen=True, kw_only=True)
class AddedVectors(Method):
    """``h + strength * vector`` at every site that there is a vector for.

    Parameters:
        strength: any sign; 1 adds the vectors as they stand in the file, 0 changes nothing.
    """

    tokens: Tokens = "all"
    strength: float | Range = Range(low=0.0, high=2.0, default=1.0)

    def null(self, layout: Layout) -> Parameters:
        """No shift."""
        return {"strength": 0.0}

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """One edit per vector; the artifact's names are sites."""
        edits = {}
        for name, vector in artifact.items():
            layer, _, stream = name.partition(".")
            shift = parameters["strength"][:, None] * vector
            edits[Site(int(layer), stream)] = AddVector(vector=shift, tokens=self.tokens)  # pyright: ignore[reportArgumentType]
        return Intervention(edits=edits)


@dataclass(frozen=True, kw_only=True)
class Vector(Method):
    """Apply what a file holds: a bundle that the harness wrote, or vectors in another tool's format.

    A bundle brings its method with it, whatever it does, and its chosen parameters are the defaults here. Vectors from
    elsewhere are added to hidden states, each at its layer.

    Source:
        Formats: the harness's own bundle; GGUF control vectors (repeng, llama.cpp); tensors saved from
        ``steering_vectors.SteeringVector`` and for lm-evaluation-harness's steered model; bare tensors.

    Parameters:
        Of a bundle: those of its method. Of vectors: ``strength``, 1 for the vectors as they are.

    Steers:
        A bundle: as its method. Vectors: the outputs of the layers that the file names, on ``tokens``.

    Requires:
        Nothing: all was learnt before.

    Access:
        A bundle says what its method was shown; of vectors from elsewhere nothing is known, so pairs, labels and texts
        count as seen.

    Artifact:
        That of the bundle; or one vector per site, named after it.

    Fidelity:
        Exact: tokens equal those of the tool that the file is from, for files of the four formats above.

    Args:
        path: the file.
        sha256: of the file; filled in from it, or checked against it where given.
        layer: where a tensor on its own belongs, from 0.
        stream: the same.
        tokens: which tokens vectors from elsewhere are added to; the tools named above add to all.
        strength: as under Parameters; a bundle has ranges of its own.
        values: fixed values of a bundle's parameters, by name.
    """

    access: ClassVar[frozenset[Access]] = frozenset({Access.PAIRS, Access.LABELS, Access.TEXTS})

    path: str
    sha256: str | None = None
    layer: int | None = None
    stream: Stream = "block"
    tokens: Tokens = "all"
    strength: Range | None = None
    values: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the file: what it holds is part of what the method is.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is another one than ``sha256`` says.
        """
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"method.path: vector file not found: {self.path}")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if self.sha256 not in (None, digest):
            raise ValueError(f"method.sha256: {self.path} has SHA-256 {digest}, not {self.sha256}")
        object.__setattr__(self, "sha256", digest)
        object.__setattr__(self, "instruction", self.instruction or self._inner.instruction)
        if self._bundle is not None:
            # What a method was shown is usually a fact of its class; here it is one of the file.
            object.__setattr__(self, "access", frozenset(map(Access, self._bundle.note.access)))

    @property
    def _bundle(self) -> Bundle | None:
        return _bundle_in(self.path, self.sha256)

    @property
    def _inner(self) -> Method:
        """The method that does the work."""
        if self._bundle is not None:
            return _method_in(self.path, self.sha256)
        strength = AddedVectors.strength if self.strength is None else self.strength
        return AddedVectors(tokens=self.tokens, strength=strength)

    @property
    def _vectors(self) -> dict[Site, Tensor]:
        return read_vectors(Path(self.path).expanduser(), self.layer, self.stream)

    def check(self, layout: Layout) -> None:
        """Refuse a file for another model, and values of parameters that there are not."""
        super().check(layout)

        if self._bundle is not None:
            self._bundle.check(layout)
            self._inner.check(layout)
            given = {"layer": self.layer, "strength": self.strength}
            if extra := [name for name, value in given.items() if value is not None]:
                raise ValueError(f"method.{extra[0]}: a bundle says this itself; set method.values.{extra[0]} instead")
        else:
            for site, vector in self._vectors.items():
                layout.check_layer("layer", site.layer)
                if len(vector) != layout.site_width(site):
                    raise ValueError(
                        f"{self.path}: the vector at {site} has {len(vector)} numbers; this model's states have "
                        f"{layout.site_width(site)}"
                    )

        if unknown := self.values.keys() - self._inner.parameters(layout).keys():
            known = ", ".join(self._inner.parameters(layout)) or "none"
            raise ValueError(f"method.values: there is no parameter {min(unknown)!r} (it has {known})")

    def parameters(self, layout: Layout) -> dict[str, float | Range]:
        """Those of the method inside, with fixed values where given."""
        return self._inner.parameters(layout) | dict(self.values)

    def defaults(self, layout: Layout) -> Parameters:
        """What was chosen when the bundle was made, else the usual defaults."""
        chosen: Parameters = {} if self._bundle is None else self._bundle.note.parameters
        return self._inner.defaults(layout) | chosen | dict(self.values)

    def null(self, layout: Layout) -> Parameters | None:
        """As the method inside."""
        return self._inner.null(layout)

    def fit(self, subject: Subject, data: FitData) -> Artifact:
        """Nothing is learnt: the file is the artifact."""
        if self._bundle is not None:
            return self._bundle.artifact
        return {str(site): vector for site, vector in self._vectors.items()}

    def condition(self, subject: Subject, artifact: Artifact, examples: Sequence[Example]) -> Artifact:
        """As the method inside."""
        return self._inner.condition(subject, artifact, examples)

    def intervention(self, artifact: Artifact, condition: Artifact, parameters: Mapping[str, Tensor]) -> Intervention:
        """As the method inside."""
        return self._inner.intervention(artifact, condition, parameters)


# A method holds settings only, so what its file holds is kept here; the hash is an argument because files change.
@lru_cache(maxsize=8)
def _bundle_in(path: str, sha256: str | None) -> Bundle | None:
    file = Path(path).expanduser()
    return read_bundle(file) if is_bundle(file) else None


@lru_cache(maxsize=8)
def _method_in(path: str, sha256: str | None) -> Method:
    bundle = _bundle_in(path, sha256)
    assert bundle is not None
    return bundle.method()
