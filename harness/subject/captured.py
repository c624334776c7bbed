"""States captured once: fits that read the same texts at the same sites share one pass over them.

Concepts of one genre share their plain texts, a control's twin reads what its method reads, and many methods of a
comparison differ only in what they make of the same states. So do the un-steered model's next tokens, which every
method's proof is held against.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from harness.model_view import TokenStates

if TYPE_CHECKING:
    from harness.subject.network import Network
    from harness.subject.tally import Tally

_MOST_BYTES = 2**30
"""Host memory for states that are kept."""
_Chunk = TypeVar("_Chunk", Mapping[Any, Tensor], TokenStates)
_memories: WeakKeyDictionary[nn.Module, CaptureMemory] = WeakKeyDictionary()


def captures_of(network: Network) -> CaptureMemory:
    """The captured states of a model that are kept."""
    return _memories.setdefault(network.model, CaptureMemory())


@dataclass(frozen=True, eq=False)
class _Kept:
    """One chunk of a capture, in host memory, and the tokens that it took."""

    chunk: Mapping[Any, Tensor] | TokenStates
    forward_tokens: int
    padding_tokens: int

    @property
    def size(self) -> int:
        """Bytes."""
        states: Mapping[Any, Tensor] = self.chunk.states if isinstance(self.chunk, TokenStates) else self.chunk
        return sum(h.nbytes for h in states.values())


class CaptureMemory:
    """Results of whole captures of the un-steered model, the least recently used given up first.

    A capture is found again only if texts, sites and tokens are all the same: then its batches are too, and a fit gets
    the very numbers that it would compute. The tally counts the work each time, so that what a record says a fit takes
    does not depend on what ran before it; the seconds show what was saved.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._captures: dict[Hashable, list[_Kept]] = {}

    def forget(self) -> None:
        """Give up all."""
        self._captures.clear()

    def recalled(
        self, key: Hashable, compute: Callable[[], Iterator[_Chunk]], tally: Tally, device: torch.device
    ) -> Iterator[_Chunk]:
        """The chunks of a capture: those that are kept under the key, else computed, and kept once all are there.

        Args:
            key: texts, sites and everything else that the result depends on.
            compute: begins the capture.
            tally: where work is counted.
            device: where chunks are wanted.
        """
        if key in self._captures:
            self._captures[key] = self._captures.pop(key)  # to the end: it is the last one used now
            for kept in list(self._captures[key]):
                tally.forward_tokens += kept.forward_tokens
                tally.padding_tokens += kept.padding_tokens
                yield _copied(kept.chunk, device)  # pyright: ignore[reportReturnType]
            return

        chunks: list[_Kept] = []
        too_large = False
        capture = compute()
        while True:
            fed, padding = tally.forward_tokens, tally.padding_tokens
            chunk = next(capture, None)
            if chunk is None:
                break
            if not too_large:
                own = _copied(chunk, torch.device("cpu"))
                chunks.append(_Kept(own, tally.forward_tokens - fed, tally.padding_tokens - padding))
                too_large = sum(kept.size for kept in chunks) > self.most_bytes
            if too_large:
                chunks.clear()
            yield chunk
        if not too_large:
            self._keep(key, chunks)

    def _keep(self, key: Hashable, chunks: list[_Kept]) -> None:
        self._captures[key] = chunks
        sizes = {other: sum(kept.size for kept in of_other) for other, of_other in self._captures.items()}
        in_all = sum(sizes.values())
        for other, size in sizes.items():
            if in_all <= self.most_bytes:
                break
            del self._captures[other]
            in_all -= size


def _copied(chunk: _Chunk, device: torch.device) -> _Chunk:
    """The same on a device, in memory of its own: whoever gets it may change it."""
    if isinstance(chunk, TokenStates):
        states = {site: h.to(device, copy=True) for site, h in chunk.states.items()}
        return TokenStates(states, *(one.to(device, copy=True) for one in (chunk.text, chunk.position, chunk.token)))
    return {name: h.to(device, copy=True) for name, h in chunk.items()}
