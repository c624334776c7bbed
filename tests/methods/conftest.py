"""Stand-ins for what a method sees of a model, and the laws that its edits must keep."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from tinylm import behind_prefix, words
from torch import Tensor

from harness.subject.local import LocalSubject
from harness.types import Demonstration, Edit, Intervention, Layout, Site, Where

Activation = Callable[[str, str, Site], Tensor]


class SyntheticSubject:
    """Activations from a function of prompt, completion and site, so that what is hidden in them is known."""

    def __init__(self, layout: Layout, activation: Activation) -> None:
        self.layout, self.activation, self.requests = layout, activation, []

    def capture(
        self, prompts: Sequence[str], completions: Sequence[str] | None, sites: Sequence[Site], **options: object
    ) -> dict[Site, Tensor]:
        self.requests.append(options | {"prompts": list(prompts), "completions": completions})
        texts = list(zip(prompts, completions or [""] * len(prompts), strict=True))
        return {site: torch.stack([self.activation(*text, site) for text in texts]) for site in sites}


@pytest.fixture
def synthetic_subject() -> type[SyntheticSubject]:
    """A class to build subjects with known activations from."""
    return SyntheticSubject


def passes(site: Site) -> dict[str, Where]:
    """A batch of three prompts (4, 2 and 3 tokens) padded on either side, and the decoding step that follows."""
    lengths = torch.tensor([4, 2, 3])
    place = torch.arange(6)[None].expand(3, 6)
    left = place - (6 - lengths[:, None] - 1)
    return {
        "left": Where(left, left >= 0, lengths, True, site),
        "right": Where(place, place < lengths[:, None] + 1, lengths, True, site),
        "full": Where(place, None, lengths, True, site),
        "decode": Where(lengths[:, None] + 1, None, lengths, False, site),
    }


def check_laws(site: Site, edit: Edit, width: int) -> None:
    """Purity, untouched padding, same dtype and `take` commuting with `apply`, in every kind of pass."""
    for name, where in passes(site).items():
        h = torch.randn(*where.positions.shape, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        kept = h.clone()
        edited, _ = edit.apply(h, where, {})
        assert torch.equal(h, kept), f"{name}: the edit changed its input"
        assert edited.shape == h.shape
        assert edited.dtype == h.dtype
        if where.real is not None:
            assert torch.equal(edited[~where.real], h[~where.real]), f"{name}: the edit changed padding"
        rows = torch.tensor([2, 0, 0])
        real = None if where.real is None else where.real[rows]
        fewer = Where(where.positions[rows], real, where.prompt_lengths[rows], where.prefill, site)
        assert torch.equal(edit.take(rows).apply(h[rows], fewer, {})[0], edited[rows]), f"{name}: take does not commute"


@pytest.fixture
def edit_laws() -> Callable[[Intervention, Layout], None]:
    """Checks every edit of an intervention for three rows."""

    def check(intervention: Intervention, layout: Layout) -> None:
        assert intervention.edits
        for site, edit in intervention.edits.items():
            check_laws(site, edit, layout.site_width(site))

    return check


@pytest.fixture
def apply_edits() -> Callable[..., Tensor]:
    """What an intervention makes of a tensor at one site: in the prefill of unpadded prompts, or in decoding."""

    def apply(intervention: Intervention, h: Tensor, site: Site, *, prompt: int = 10**6, start: int = 0) -> Tensor:
        positions = torch.arange(start, start + h.shape[1]).expand(h.shape[:2])
        where = Where(positions, None, torch.full((len(h),), prompt), start == 0, site)
        return intervention.edits[site].apply(h, where, {})[0] if site in intervention.edits else h

    return apply


@pytest.fixture
def trained(golden: Callable[[str], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    """What the authors' AxBench trained on the random Llama."""
    return golden("axbench_trained")


@pytest.fixture
def trained_subject(golden: Callable[[str], Mapping], trained: Mapping[str, np.ndarray]) -> LocalSubject:
    """The model that it was trained on, with the prefix of its prompts."""
    return behind_prefix(golden("tinylm"), trained["train_prompt_ids"][0, : int(trained["train_prefix"])])


@pytest.fixture
def trained_texts(trained: Mapping[str, np.ndarray]) -> list[Demonstration]:
    """The texts that it was trained on."""
    prefix = int(trained["train_prefix"])
    pairs = zip(trained["train_prompt_ids"], trained["train_completion_ids"], strict=True)
    return [Demonstration(words(prompt[prefix:]), words(completion)) for prompt, completion in pairs]
