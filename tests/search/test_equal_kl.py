"""Calibration to equal divergence."""

from collections.abc import Callable

import pytest

from harness.receipt import prompt_end_kl
from harness.search.equal_kl import EqualKL, Line
from harness.types import Access, Layout, Method, Parameters, Range
from harness.workbench import Request
from methods.baseline import Baseline
from methods.fusion import FusionSteering
from methods.single_vector import SingleVector

LAYOUT = Layout(num_layers=4, width=64, num_heads=4, head_width=16)


def equal_kl(target: float) -> EqualKL:
    return EqualKL(target_kl=target, tolerance=0.02, max_steps=30, max_factor=8.0)


@pytest.mark.parametrize("target", [0.01, 0.05])
@pytest.mark.parametrize(
    "method",
    [
        FusionSteering(segments={"early": (0.01, 0.5), "late": (0.01, 0.5)}),
        SingleVector(layer=2, strength=Range(0.0, 2.0, 0.3)),
    ],
    ids=["fusion", "single vector"],
)
def test_the_calibrated_strength_moves_the_model_as_far_as_asked(
    bench: Callable, setting: Callable, method: Method, target: float
) -> None:
    subject = bench(method)
    dev = subject.task.examples("dev")
    chosen = equal_kl(target).prepare(subject, dev, setting())
    measured = float(prompt_end_kl(subject, [Request(example, chosen) for example in dev]).mean())
    assert measured == pytest.approx(target, rel=0.021)
    defaults, null = method.defaults(LAYOUT), method.null(LAYOUT)
    assert null is not None
    factors = {round((chosen[n] - null[n]) / (defaults[n] - null[n]), 9) for n in chosen if defaults[n] != null[n]}
    assert len(factors) == 1, "all strengths are scaled together"
    assert all(chosen[name] == null[name] for name in chosen if defaults[name] == null[name])


def test_only_dev_items_are_used_and_no_answer_is_needed(bench: Callable, setting: Callable) -> None:
    assert EqualKL.access == frozenset()
    assert not EqualKL.needs_objective
    subject = bench(SingleVector(layer=2, strength=0.3))
    redacted = [example.redacted() for example in subject.task.examples("dev")]
    with_answers = equal_kl(0.01).prepare(subject, subject.task.examples("dev"), setting())
    (setting().store.folder / "equal_kl.json").unlink()
    assert equal_kl(0.01).prepare(subject, redacted, setting()) == with_answers
    assert Access.GOLD not in subject.method.access


def test_after_a_restart_the_stored_factor_is_taken(bench: Callable, setting: Callable) -> None:
    subject = bench(SingleVector(layer=2, strength=0.3))
    first = equal_kl(0.01).prepare(subject, subject.task.examples("dev"), setting())
    before = subject.subject.tally.forward_tokens
    assert equal_kl(0.01).prepare(subject, [], setting()) == first
    assert subject.subject.tally.forward_tokens == before


def test_a_target_out_of_reach_is_an_error(bench: Callable, setting: Callable) -> None:
    subject = bench(FusionSteering(segments={"all": (0.001, 0.002)}))
    with pytest.raises(ValueError, match=r"mean KL is only .* nats at the largest strength \(k_all=0.002\)"):
        equal_kl(3.0).prepare(subject, subject.task.examples("dev"), setting())


class Clamp(SingleVector):
    """A method without a point at which it does nothing."""

    def null(self, layout: Layout) -> Parameters | None:
        return None


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Baseline(), "Baseline has no parameters"),
        (Clamp(), "Clamp has no such parameters"),
        (SingleVector(strength=0.0), "no steering at all"),
    ],
)
def test_methods_that_cannot_be_scaled_are_refused(method: Method, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        equal_kl(0.1).check(method, LAYOUT)


def test_the_line_ends_where_the_first_range_does() -> None:
    method = FusionSteering(segments={"early": (0.01, 0.04), "late": (0.01, 0.16)})  # defaults 0.02 and 0.04
    line = Line.of(method, LAYOUT, 8.0)
    assert line.end == pytest.approx(2.0)
    assert line.at(0.0) == {"k_early": 0.0, "k_late": 0.0}
    assert line.at(2.0) == pytest.approx({"k_early": 0.04, "k_late": 0.08})
    assert Line.of(SingleVector(layer=1, strength=0.3), LAYOUT, 8.0).end == 8.0
