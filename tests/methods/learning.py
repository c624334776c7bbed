"""Small texts, passes and trainings for tests of methods that learn."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from harness.batch_plan import Plan
from harness.text_learner import TextLearner
from harness.training import History, Training, train
from harness.types import (
    Demonstration,
    Intervention,
    Layout,
    Method,
    Site,
    Subject,
    TokenCount,
    TokenStates,
    Where,
)
from harness.workspace import Workspace


def prompts_alone(shape: Sequence[int], real: Tensor | None = None, prompt: int | None = None) -> Where:
    """A pass at the output of block 0; every token belongs to the prompt unless its length is given."""
    positions = torch.arange(shape[1]).expand(shape[0], -1)
    return Where(positions, real, torch.full((shape[0],), shape[1] if prompt is None else prompt), True, Site(0))


def shown(group: str, letter: str, count: int = 8) -> list[Demonstration]:
    """Wanted completions repeat a letter, unwanted ones are plain."""
    positives = [Demonstration(f"say {i}", f" {letter * 3}{i}{letter}", group=group) for i in range(count)]
    plain = [Demonstration(f"say {i}", f" word{i}", wanted=False, group=group) for i in range(count)]
    return [*positives, *plain]


def likelihood(subject: Subject, method: Method, artifact: dict, letter: str, strength: float, group: int = 0) -> float:
    """Log-probability of a new text that repeats the letter, when steered with this strength."""
    steered = Intervention()
    if strength:
        parameters = method.defaults(subject.layout) | {"strength": strength}
        tensors = {name: torch.tensor([value]) for name, value in parameters.items()}
        steered = method.intervention(artifact, {"group": torch.tensor([group])}, tensors)
    (logprobs,) = subject.loglikelihood(["say 9"], [f" {letter * 3}9{letter}"], intervention=steered)
    return float(logprobs.sum())


def train_in_order(learner: TextLearner, order: Sequence[Sequence[Sequence[int]]], **settings: object) -> History:
    """Train on given passes of given steps, as authors did."""
    steps = tuple(tuple(tuple(rows) for rows in passes) for passes in order)
    lengths = [count.total for count in learner.counts]
    training = Training(batch_size=1, **settings)  # pyright: ignore[reportArgumentType]
    return train(learner, Plan(steps, (len(steps),)), training, Workspace(), lengths)


class Planted:
    """A subject whose states are noise, moved along one direction in every token of a text that repeats a letter."""

    device = torch.device("cpu")
    prefix_length = 1
    workspace = Workspace()

    def __init__(self, width: int, offset: float) -> None:
        self.layout = Layout(num_layers=3, width=width, num_heads=1, head_width=width)
        self.offset = offset
        generator = torch.Generator().manual_seed(3)
        self.direction = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)

    def token_counts(self, prompts: Sequence[str], completions: Sequence[str]) -> list[TokenCount]:
        """One token for each character, behind one that all texts begin with."""
        return [TokenCount(1 + len(p), len(c)) for p, c in zip(prompts, completions, strict=True)]

    def capture_tokens(
        self, prompts: Sequence[str], completions: Sequence[str], sites: Sequence[Site], tokens: str = "all"
    ) -> Iterator[TokenStates]:
        """All texts in one chunk."""
        assert tokens == "all"
        counts = [count.total for count in self.token_counts(prompts, completions)]
        text = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        position = torch.cat([torch.arange(count) for count in counts])
        states = torch.randn(len(text), self.layout.width, generator=torch.Generator().manual_seed(len(text)))

        planted = torch.tensor([c[1] == c[2] == c[3] for c in completions])
        states += self.offset * planted[text][:, None] * self.direction
        yield TokenStates(dict.fromkeys(sites, states), text, position, text)


class Given:
    """A subject whose states are given, text by text; a text's prompt is its number."""

    device = torch.device("cpu")
    workspace = Workspace()

    def __init__(self, states: np.ndarray, lengths: np.ndarray, prefix: int, prompts: np.ndarray | None = None) -> None:
        self.states, self.lengths, self.prefix_length = torch.from_numpy(states), lengths.tolist(), prefix
        self.prompts = [0] * len(self.lengths) if prompts is None else prompts.tolist()
        self.layout = Layout(num_layers=2, width=states.shape[-1], num_heads=1, head_width=states.shape[-1])

    @staticmethod
    def text(row: int, is_wanted: bool) -> Demonstration:
        """The text of a row."""
        return Demonstration(str(row), "", wanted=is_wanted)

    def capture_tokens(
        self, prompts: Sequence[str], completions: Sequence[str], sites: Sequence[Site], tokens: str = "all"
    ) -> Iterator[TokenStates]:
        """All texts in one chunk."""
        rows = [int(prompt) for prompt in prompts]
        starts = [self.prompts[row] if tokens == "completion" else 0 for row in rows]
        states = torch.cat(
            [self.states[row, start : self.lengths[row]] for row, start in zip(rows, starts, strict=True)]
        )
        places = [torch.arange(start, self.lengths[row]) for row, start in zip(rows, starts, strict=True)]
        text = torch.cat([torch.full_like(place, number) for number, place in enumerate(places)])
        yield TokenStates(dict.fromkeys(sites, states), text, torch.cat(places), text)
