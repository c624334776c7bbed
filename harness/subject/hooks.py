"""The only place where hooks are registered: applies an intervention during forward passes and takes it off again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from harness.steering import STORED_STREAMS, Carry, Intervention, Site, Where
from harness.subject.sites import Blocks

Observer = Callable[[Site, Tensor, Tensor, Where], None]
"""Called with the state before and after the edit of a site."""


class Steering:
    """Keeps an intervention attached to a model inside a ``with`` block.

    The engine sets ``where``, ``carry`` and ``intervention`` before each forward pass; edits return the next carry.
    Hooks are attached once, on entry, so rows may leave and join without touching one; only rows with an edit at a new
    site make the engine `reach` it.

    Args:
        blocks: the blocks of the model.
        intervention: what to apply; may be replaced later by one that acts at the same sites or some of them.
        observed: further sites at which only the observer looks on.
        observer: sees every visited site, before and after its edit.
    """

    def __init__(
        self,
        blocks: Blocks,
        intervention: Intervention,
        observed: Iterable[Site] = (),
        observer: Observer | None = None,
    ) -> None:
        self.intervention = intervention
        self.carry: Carry = {}
        self.where: Where | None = None
        self._blocks = blocks
        self._observer = observer
        self._first_sites = {*intervention.edits, *intervention.probes, *observed}
        self._handles: dict[Site, RemovableHandle] = {}

    def __enter__(self) -> Self:
        """Attach; a site that the model does not have raises ValueError and leaves nothing behind."""
        try:
            self.reach(self._first_sites)
        except BaseException:
            self._detach()
            raise
        return self

    def reach(self, sites: Iterable[Site]) -> None:
        """Attach hooks at those of the sites that have none yet.

        Raises:
            ValueError: the model has no such site.
        """
        for site in sorted(set(sites) - self._handles.keys()):
            self._handles[site] = self._attach(site)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take every hook off, also after an exception."""
        self._detach()

    def _detach(self) -> None:
        while self._handles:
            self._handles.popitem()[1].remove()

    def _attach(self, site: Site) -> RemovableHandle:
        module, at_input = self._blocks.module(site)
        if site.stream in STORED_STREAMS:
            return module.register_forward_pre_hook(self._attention_hook(site), with_kwargs=True)
        if at_input:
            return module.register_forward_pre_hook(self._input_hook(site), with_kwargs=True)
        return module.register_forward_hook(self._output_hook(site))

    def _output_hook(self, site: Site) -> Callable[[Any, Any, Any], Any]:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (self._visit(site, output[0]), *output[1:])
            return self._visit(site, output)

        return hook

    def _input_hook(self, site: Site) -> Callable[[Any, Any, Any], Any]:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (self._visit(site, args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": self._visit(site, kwargs["hidden_states"])}

        return hook

    def _attention_hook(self, site: Site) -> Callable[[Any, Any, Any], Any]:
        """Hand `harness.subject.attention.attend` what visits the keys or values that it is about to read."""

        def visit(h: Tensor) -> Tensor:
            return self._visit(site, h)

        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return args, kwargs | {f"visit_{site.stream}": visit}

        return hook

    @contextmanager
    def on(self, where: Where, intervention: Intervention, carry: Carry) -> Iterator[None]:
        """Steer the forward pass inside the block; afterwards ``carry`` holds what edits learnt.

        Other passes, such as a scorer's between two steps, find the hooks without effect.
        """
        self.where, self.intervention, self.carry = where, intervention, carry
        try:
            yield
        finally:
            self.where = None

    def _visit(self, site: Site, h: Tensor) -> Tensor:
        if self.where is None:  # a pass of somebody else's, such as a scorer's
            return h
        where = self.where.at(site)

        # A probe reads what the edit of the same site is about to change.
        if site in self.intervention.probes:
            self.carry = self.intervention.probes[site].read(h, where, self.carry)

        new = h
        if site in self.intervention.edits:
            new, self.carry = self.intervention.edits[site].apply(h, where, self.carry)
            new = new.to(h.dtype)

        if self._observer is not None:
            self._observer(site, h, new, where)
        return new


BeforePass = Callable[[tuple[Any, ...], dict[str, Any]], None]
"""Called with the arguments of a forward pass."""


@contextmanager
def before_each_pass(model: nn.Module, look: BeforePass) -> Iterator[None]:
    """Call ``look`` at the start of every forward pass of a model, inside the block."""

    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        look(args, kwargs)

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _EnoughError(Exception):
    """Ends a pass whose further blocks nobody asked for."""


@contextmanager
def stopped_behind(block: nn.Module) -> Iterator[list[Any]]:
    """End the pass inside the context behind a block; the list then holds the block's output."""
    outputs: list[Any] = []

    def stop(_module: nn.Module, _args: Any, output: Any) -> None:
        outputs.append(output)
        raise _EnoughError

    handle = block.register_forward_hook(stop)
    try:
        with suppress(_EnoughError):
            yield outputs
    finally:
        handle.remove()


@contextmanager
def skipped(blocks: Sequence[nn.Module], states: Tensor, *, in_tuple: bool) -> Iterator[None]:
    """Let these blocks compute nothing inside the context: each gives out the states, as if it had made them.

    Args:
        blocks: from the model's first one on.
        states: what the last of them is to give out; hooks at its output see them.
        in_tuple: the model's blocks give out their states in a tuple.
    """
    # A block may have a forward of its own already, as where weights are offloaded.
    own = {block: vars(block)["forward"] for block in blocks if "forward" in vars(block)}
    for block in blocks:
        block.forward = lambda *_args, **_options: (states,) if in_tuple else states
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
            if block in own:
                block.forward = own[block]
