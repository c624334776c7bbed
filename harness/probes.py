"""Linear probes: one logistic regression per place in the model, and the questions that they are tried on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Probes(NamedTuple):
    """What the probes of all places learnt."""

    weight: Float[Tensor, "*places W"]
    bias: Float[Tensor, "*places"]
    accuracy: Float[Tensor, "*places"]
    """Share of the validation rows that are told right, 0 to 1."""


def held_out(prompts: Sequence[str], share: float, seed: int) -> Bool[Tensor, "N"]:
    """True for the answers to a random share of the questions, at least one; a question is never split.

    Prompts of the same words are one question: options come in several orders.
    """
    asked = [" ".join(sorted(prompt.split())) for prompt in prompts]
    questions = sorted(set(asked))
    order = torch.randperm(len(questions), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = {questions[i] for i in order[: max(1, round(share * len(questions)))]}
    return torch.tensor([question in chosen for question in asked])


def train_probes(
    states: Float[Tensor, "N *places W"],
    is_wanted: Bool[Tensor, "N"],
    validation: Bool[Tensor, "N"],
    *,
    seed: int = 0,
    max_iter: int = 1000,
) -> Probes:
    """One logistic regression per place (L2 penalty 1, as scikit-learn's default).

    Args:
        states: activations of N texts at every place.
        is_wanted: which texts are of the wanted kind.
        validation: texts that only measure the accuracy; the others are learnt from.
        seed: of the solver.
        max_iter: steps of the solver, at most.

    Raises:
        ValueError: training or validation texts are all of one kind.
    """
    from sklearn.linear_model import LogisticRegression  # here, because reading directions must not load it

    for name, part in (("training", ~validation), ("validation", validation)):
        if is_wanted[part].all() or not is_wanted[part].any():
            raise ValueError(f"the {name} answers must be of both kinds, got {int(part.sum())} of one kind")

    shape, labels = states.shape[1:-1], is_wanted.numpy()
    flat = states.reshape(len(states), -1, states.shape[-1]).cpu().numpy()
    learn, test = (~validation).numpy(), validation.numpy()
    weights, biases, accuracies = [], [], []
    for place in range(flat.shape[1]):
        probe = LogisticRegression(random_state=seed, max_iter=max_iter).fit(flat[learn, place], labels[learn])
        weights.append(torch.from_numpy(probe.coef_[0]))
        biases.append(float(probe.intercept_[0]))
        accuracies.append(probe.score(flat[test, place], labels[test]))
    return Probes(
        torch.stack(weights).view(*shape, -1).to(states),
        torch.tensor(biases).view(shape).to(states),
        torch.tensor(accuracies).view(shape).to(states.device),
    )
