"""Small texts, passes and trainings for tests of methods that learn."""

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.batch_plan import Plan
from harness.text_learner import TextLearner
from harness.training import History, Training, train
from harness.types import Demonstration, Intervention, Method, Site, Subject, Where
from harness.workspace import Workspace


def prompts_alone(shape: Sequence[int], real: Tensor | None = None, prompt: int | None = None) -> Where:
    """A pass at the output of block 0; every token belongs to the prompt unless its length is given."""
    positions = torch.arange(shape[1]).expand(shape[0], -1)
    return Where(positions, real, torch.full((shape[0],), shape[1] if prompt is None else prompt), True, Site(0))


def shown(group: str, letter: str, count: int = 8) -> list[Demonstration]:
    """Wanted completions repeat a letter, unwanted ones are plain."""
    wanted = [Demonstration(f"say {i}", f" {letter * 3}{i}{letter}", group=group) for i in range(count)]
    plain = [Demonstration(f"say {i}", f" word{i}", wanted=False, group=group) for i in range(count)]
    return [*wanted, *plain]


def likelihood(subject: Subject, method: Method, artifact: dict, letter: str, strength: float, group: int = 0) -> float:
    """Log-probability of a new text that repeats the letter, when steered with this strength."""
    steered = Intervention()
    if strength:
        parameters = method.defaults(subject.layout) | {"strength": strength}
        tensors = {name: torch.tensor([value]) for name, value in parameters.items()}
        steered = method.intervention(artifact, {"group": torch.tensor([group])}, tensors)
    (found,) = subject.loglikelihood(["say 9"], [f" {letter * 3}9{letter}"], intervention=steered)
    return float(found.sum())


def train_in_order(learner: TextLearner, order: Sequence[Sequence[Sequence[int]]], **settings: object) -> History:
    """Train on given passes of given steps, as authors did."""
    steps = tuple(tuple(tuple(rows) for rows in passes) for passes in order)
    lengths = [count.total for count in learner.counts]
    training = Training(batch_size=1, **settings)  # pyright: ignore[reportArgumentType]
    return train(learner, Plan(steps, (len(steps),)), training, Workspace(), lengths)
