"""Logistic read-outs."""

import torch
from torch.nn import functional

from harness.classifiers import fit_logistic


def test_logistic_regression_is_at_its_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    for gap in (0.0, 3.0, 300.0):
        x, labels = torch.randn(40, 3, generator=generator).double(), torch.arange(40) < 12
        x[labels, 0] += gap
        weights = torch.rand(2, 40, generator=generator).double()
        slopes, intercepts = fit_logistic(x, labels, weights)
        slopes, intercepts = slopes.requires_grad_(), intercepts.requires_grad_()
        logits = slopes @ x.T + intercepts[:, None]
        wrong = functional.binary_cross_entropy_with_logits(logits, labels.double().expand(2, 40), reduction="none")
        ((weights * wrong).sum() + slopes.square().sum() / 2).backward()
        assert slopes.grad.abs().max() < 1e-7
        assert intercepts.grad.abs().max() < 1e-7
