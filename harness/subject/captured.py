"""States captured once: fits that read the same texts at the same sites share one pass over them.

Concepts of one genre share their plain texts, a control that shuffles labels reads the very texts of its method (one
that swaps the sides of pairs does not), and many methods of a comparison differ only in what they make of the same
states. The un-steered model's next tokens, which every method's proof is held against, are kept in the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
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
"""Host memory for states that are kept, and again as much while a capture is read."""
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


class CaptureMemory:
    """Results of whole captures of the un-steered model, the least recently used given up first.

    A capture is found again only if texts, sites and tokens are all the same: then its batches are too, and a fit gets
    the very numbers that it would compute. The tally counts the work each time, so that what a record says a fit takes
    does not depend on what ran before it; the seconds show what was saved.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._captures: dict[str, list[_Kept]] = {}
        self._sizes: dict[str, int] = {}
        self._size = 0

    def forget(self) -> None:
        """Give up all."""
        for key in list(self._captures):
            self._give_up(key)

    def recalled(
        self, asked: tuple[Any, ...], compute: Callable[[], Iterator[_Chunk]], tally: Tally, device: torch.device
    ) -> Iterator[_Chunk]:
        """The chunks of a capture: those that are kept, else computed, and kept once all are there.

        Args:
            asked: texts, sites and everything else that the result depends on, of types that ``repr`` tells apart.
            compute: begins the capture.
            tally: where work is counted.
            device: where chunks are wanted.
        """
        key = hashlib.sha256(repr(asked).encode()).hexdigest()
        if key in self._captures:
            self._captures[key] = self._captures.pop(key)  # to the end: it is the last one used now
            for kept in list(self._captures[key]):
                tally.forward_tokens += kept.forward_tokens
                tally.padding_tokens += kept.padding_tokens
                yield _copied(kept.chunk, device)  # pyright: ignore[reportReturnType]
            return

        chunks: list[_Kept] = []
        size = 0
        capture = compute()
        while True:
            fed, padding = tally.forward_tokens, tally.padding_tokens
            chunk = next(capture, None)
            if chunk is None:
                break
            size += sum(part.nbytes for part in _tensors(chunk))
            if size <= self.most_bytes:
                own = _copied(chunk, torch.device("cpu"))
                chunks.append(_Kept(own, tally.forward_tokens - fed, tally.padding_tokens - padding))
            else:
                chunks.clear()
            yield chunk
        if size <= self.most_bytes:
            self._keep(key, chunks, size)

    def _keep(self, key: str, chunks: list[_Kept], size: int) -> None:
        if key in self._captures:  # read twice at the same time
            return
        while self._size + size > self.most_bytes:
            self._give_up(next(iter(self._captures)))
        self._captures[key], self._sizes[key] = chunks, size
        self._size += size

    def _give_up(self, key: str) -> None:
        del self._captures[key]
        self._size -= self._sizes.pop(key)


def _tensors(chunk: Mapping[Any, Tensor] | TokenStates) -> list[Tensor]:
    if isinstance(chunk, TokenStates):
        return [*chunk.states.values(), chunk.text, chunk.position, chunk.token]
    return list(chunk.values())


def _copied(chunk: _Chunk, device: torch.device) -> _Chunk:
    """The same on a device, in memory of its own: whoever gets it may change it."""
    if isinstance(chunk, TokenStates):
        states = {site: h.to(device, copy=True) for site, h in chunk.states.items()}
        return TokenStates(states, *(one.to(device, copy=True) for one in (chunk.text, chunk.position, chunk.token)))
    return {name: h.to(device, copy=True) for name, h in chunk.items()}
