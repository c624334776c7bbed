"""Logistic read-outs of activations that methods share: which of two kinds of text a state comes from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Classifier(NamedTuple):
    """A logistic regression folded to one read-out, with the accuracy that decides whether it is used."""

    weight: Float[Tensor, "D"]
    bias: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]


def fit_classifier(
    h: Float[Tensor, "N D"], labels: Bool[Tensor, "N"], *, components: int, folds: int | None
) -> Classifier:
    """Logistic regression on the leading principal components of ``h``.

    Args:
        h: one pooled activation per text.
        labels: True for source texts.
        components: how many principal components to keep, at most.
        folds: folds of the cross-validated accuracy; None measures it on the training texts themselves.
    """
    h = h.double().cpu()
    mean = h.mean(0)
    _, spread, axes = torch.linalg.svd(h - mean, full_matrices=False)
    kept = max(1, min(components, int((spread > spread[0] * 1e-9).sum())))
    # Scores of variance 1, so that the penalty of the regression means the same at every site.
    reading_RD = axes[:kept] * (len(h) ** 0.5 / spread[:kept, None].clamp(min=1e-12))
    z_NR = (h - mean) @ reading_RD.T
    trained_FN = training_rows(labels, folds)
    slopes_FR, intercepts_F = fit_logistic(z_NR, labels, trained_FN * balance(labels, trained_FN))
    right_FN = (slopes_FR @ z_NR.T + intercepts_F[:, None] > 0) == labels
    tested_FN = trained_FN if folds is None else ~trained_FN
    accuracies = (right_FN * tested_FN * balance(labels, tested_FN)).sum(1) / tested_FN.sum(1)
    weight = slopes_FR[0] @ reading_RD
    bias = intercepts_F[0] - weight @ mean
    accuracy = accuracies[0 if folds is None else slice(1, None)].mean()
    return Classifier(weight.float(), bias.float(), accuracy.float())


def training_rows(labels: Bool[Tensor, "N"], folds: int | None) -> Bool[Tensor, "F N"]:
    """Texts to train on: all of them first, then all but each fold. Folds are random and hold both classes alike."""
    everything = torch.ones(1, len(labels), dtype=torch.bool)
    if folds is None:
        return everything
    fold_N = torch.empty(len(labels), dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    for rows in (labels.nonzero()[:, 0], (~labels).nonzero()[:, 0]):
        fold_N[rows[torch.randperm(len(rows), generator=generator)]] = torch.arange(len(rows)) % folds
    return torch.cat([everything, fold_N != torch.arange(folds)[:, None]])


def balance(labels: Bool[Tensor, "N"], chosen: Bool[Tensor, "F N"]) -> Float[Tensor, "F N"]:
    """Weights under which both classes count half among the chosen texts."""
    share_F1 = (chosen & labels).sum(1, keepdim=True) / chosen.sum(1, keepdim=True)
    return torch.where(labels, 0.5 / share_F1, 0.5 / (1 - share_F1))


def fit_logistic(
    x: Float[Tensor, "N R"], labels: Bool[Tensor, "N"], weights: Float[Tensor, "F N"]
) -> tuple[Float[Tensor, "F R"], Float[Tensor, "F"]]:
    """Slopes and intercepts of ``F`` weighted logistic regressions, with half the squared slopes as penalty.

    Newton's method in float64: a smooth, strictly convex problem of few dimensions needs about ten steps.
    """
    x_NC = torch.cat([x, torch.ones_like(x[:, :1])], 1).double()
    penalty = torch.cat([torch.ones_like(x_NC[0, 1:]), x_NC.new_tensor([1e-9])])
    beta_FC = x_NC.new_zeros(len(weights), x_NC.shape[1])
    for _ in range(100):
        p_FN = torch.sigmoid(beta_FC @ x_NC.T)
        slope_FC = (weights * (p_FN - labels.to(p_FN))) @ x_NC + penalty * beta_FC
        curvature = torch.einsum("fn,nc,nd->fcd", weights * p_FN * (1 - p_FN), x_NC, x_NC) + penalty.diag()
        step_FC = torch.linalg.solve(curvature, slope_FC)
        beta_FC = beta_FC - step_FC
        if step_FC.abs().max() < 1e-9:
            break
    return beta_FC[:, :-1], beta_FC[:, -1]
