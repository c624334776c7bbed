"""AxBench's probe: the loss by hand, a planted direction, groups side by side, detection, refusals."""

import pytest
import torch
from learning import Planted, shown
from torch.nn.functional import cosine_similarity

from harness.subject.load import ModelConfig, load_model
from harness.subject.local import LocalSubject
from harness.subject.scorers import open_subject
from harness.training import Part, Training
from harness.types import Demonstration, FitData, Layout, Site
from methods.probe import LinearProbe, ProbeLearner

SHORT = Training(epochs=3, batch_size=4, learning_rate=0.05, clip=None)


@pytest.fixture(scope="module")
def tiny() -> LocalSubject:
    return open_subject(load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float64")))


def test_a_planted_direction_is_found() -> None:
    subject, data = Planted(width=8, offset=4.0), FitData(demonstrations=tuple(shown("", "z", count=12)))
    method = LinearProbe(layer=1, training=Training(epochs=20, batch_size=6, learning_rate=0.05, clip=None))
    artifact = method.fit(subject, data)
    assert cosine_similarity(artifact["vector"][0], subject.direction, dim=0) > 0.97
    assert artifact["vector"].norm() == pytest.approx(1.0, abs=0.05)

    texts = [(text.prompt, text.completion) for text in shown("", "z", count=12)]
    latents = method.latents(subject, artifact, texts, [""] * len(texts))
    assert latents is not None
    assert latents[:12].min() > latents[12:].max()


def test_the_loss_is_the_mean_over_tokens_and_adds_up(tiny: LocalSubject) -> None:
    texts = [Demonstration("say", " long enough", group="a"), Demonstration("say", " x", wanted=False, group="a")]
    learner = ProbeLearner(tiny, texts, Site(1), seed=0)
    learner.requires_grad_(False)
    both = learner.loss(Part((0, 1), (0, 1), 0, 0.0, 0))
    parts = [learner.loss(Part((row,), (0, 1), 0, 0.0, 0)) for row in (0, 1)]
    assert float(both) == pytest.approx(float(parts[0] + parts[1]))

    terms = []
    for states, sign in zip(learner.states, (1, -1), strict=True):
        terms += [torch.nn.functional.softplus(-sign * (h @ learner.w[0] + learner.b[0, 0])) for h in states]
    assert len(terms) == sum(count.total - tiny.prefix_length for count in learner.counts)
    assert float(both) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-5)


def test_groups_learn_side_by_side_what_they_learn_alone(tiny: LocalSubject) -> None:
    both, method = shown("a", "z") + shown("b", "q"), LinearProbe(layer=2, training=SHORT)
    together = method.fit(tiny, FitData(demonstrations=tuple(both)))
    for number, group in enumerate("ab"):
        alone = method.fit(tiny, FitData(demonstrations=tuple(text for text in both if text.group == group)))
        torch.testing.assert_close(together["vector"][number], alone["vector"][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together["peak"][number], alone["peak"][0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together["vector"][0], together["vector"][1], atol=1e-3)


def test_a_group_with_one_side_is_refused(tiny: LocalSubject) -> None:
    positives = [text for text in shown("a", "z") if text.wanted]
    with pytest.raises(ValueError, match="got wanted ones alone in group 'a'"):
        LinearProbe().fit(tiny, FitData(demonstrations=tuple(positives + shown("b", "q"))))


def test_a_layer_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="layer must be a whole number from 0 to 3, got 4"):
        LinearProbe(layer=4).check(Layout(num_layers=4, width=8, num_heads=1, head_width=8))
