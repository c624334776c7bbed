"""CDAS: clamp, divergence and matching by hand, a concept that it learns to bring about, and the authors' values."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from learning import prompts_alone, shown, train_in_order
from tinylm import behind_prefix, words
from torch import Tensor

from harness.subject.load import ModelConfig, load_model
from harness.subject.local import LocalSubject
from harness.subject.scorers import open_subject
from harness.training import Part, Training
from harness.types import Demonstration, FitData, Layout, Site
from methods.cdas import CDAS, Clamp, InterchangeLearner, jensen_shannon, quadruples

Arrays = Mapping[str, np.ndarray]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def tiny() -> LocalSubject:
    return open_subject(load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float64")))


@pytest.fixture
def arrays(golden: Callable[[str], Arrays]) -> Arrays:
    return golden("cdas")


@pytest.fixture
def learner(golden: Callable[[str], Arrays], arrays: Arrays) -> "Recorded":
    first = arrays["train_negative_prompt"][0]
    subject = behind_prefix(golden("tinylm"), first[: int(arrays["prefix"])])

    def texts(side: str, is_wanted: bool) -> list[Demonstration]:
        columns = (arrays[f"train_{side}_prompt"], arrays[f"train_{side}_reply"])
        prefix = int(arrays["prefix"])
        return [Demonstration(words(p[prefix:]), words(r), wanted=is_wanted) for p, r in zip(*columns, strict=True)]

    matched = quadruples(texts("positive", True) + texts("negative", False))
    learner = Recorded(subject, matched, Site(int(arrays["train_layer"])), seed=0)
    with torch.no_grad():
        learner.w.copy_(torch.from_numpy(arrays["init_w"]))
    return learner


def test_the_clamp_sets_the_part_along_the_direction_behind_the_prefix() -> None:
    h = torch.tensor([[[5.0, 1.0], [5.0, 1.0], [5.0, 1.0]]])
    real = torch.tensor([[True, True, False]])
    edit = Clamp(torch.tensor([[1.0, 0.0]]), torch.tensor([-2.0]), prefix_length=1)
    edited, _ = edit.apply(h, prompts_alone(h.shape[:2], real), {})
    assert edited[0].tolist() == [[5.0, 1.0], [-2.0, 1.0], [5.0, 1.0]]


def test_the_divergence_of_certain_and_opposite_answers_is_log_two() -> None:
    sure = torch.tensor([[50.0, 0.0], [1.0, 2.0]])
    assert jensen_shannon(sure, sure.flip(1))[0].item() == pytest.approx(float(np.log(2)))
    assert jensen_shannon(sure, sure + 3.0).abs().max() < 1e-6


def test_texts_are_matched_and_equal_prompts_get_another_text_in_front() -> None:
    positives = [Demonstration("a", " x"), Demonstration("b", " y"), Demonstration("c", " z")]
    plain = [Demonstration("a", " p", wanted=False), Demonstration("d", " q", wanted=False)]
    matched = quadruples([*positives, *plain])
    assert [(text.prompt, other.prompt) for text, other in matched] == [("b y\n\na", "a"), ("b", "d"), ("c", "a")]


def test_exchange_brings_the_other_prompts_answers_about(tiny: LocalSubject) -> None:
    # Prompts tell which letter follows; one number per prompt is exchanged.
    texts = [Demonstration(f"zzz {i}", f" z{i}", wanted=True) for i in range(6)]
    texts += [Demonstration(f"qqq {i}", f" q{i}", wanted=False) for i in range(6)]
    short = Training(epochs=15, batch_size=6, learning_rate=0.04)
    before = InterchangeLearner(tiny, quadruples(texts), Site(2), seed=0)
    everything = Part(tuple(range(6)), tuple(range(6)), 0, 0.0, 0)
    with torch.no_grad():
        start = before.loss(everything)
        before.learn(short, "cdas")
        assert before.loss(everything) < 0.8 * start
    assert before.w.norm().item() == pytest.approx(1.0)

    method = CDAS(layer=2, training=short)
    artifact = method.fit(tiny, FitData(demonstrations=tuple(texts)))
    torch.testing.assert_close(artifact["vector"], before.w.detach())
    condition, strengths = {"group": torch.tensor([0, 0])}, torch.tensor([2.0, -3.0])
    (edit,) = method.intervention(artifact, condition, {"strength": strengths}).edits.values()
    assert isinstance(edit, Clamp)
    torch.testing.assert_close(edit.target, torch.stack([2 * artifact["peak"][0], 3 * artifact["opposite"][0]]))


def test_one_side_alone_is_refused(tiny: LocalSubject) -> None:
    with pytest.raises(ValueError, match="got unwanted ones alone in group 'a'"):
        CDAS().fit(tiny, FitData(demonstrations=tuple(shown("a", "z")[8:])))


def test_a_layer_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="layer must be a whole number from 0 to 3, got 4"):
        CDAS(layer=4).check(Layout(num_layers=4, width=8, num_heads=1, head_width=8))


class Recorded(InterchangeLearner):
    """Averages over each pass and then over the passes, as the authors do, and notes what they are compared with."""

    passes_per_step = 1

    def loss(self, part: Part) -> Tensor:
        value = super().loss(dataclasses.replace(part, batch=part.rows))
        self.divergences = [*getattr(self, "divergences", []), value.item()]
        return value / self.passes_per_step

    def after_step(self) -> None:
        super().after_step()
        self.after = [*getattr(self, "after", []), self.w[0].clone()]


def test_training_agrees_with_the_authors(learner: Recorded, arrays: Arrays) -> None:
    learner.passes_per_step = int(arrays["minibatches_per_step"])
    # A row of theirs is one direction; ours is an example with both.
    passes = [list(dict.fromkeys(row)) for row in arrays["row_example"].tolist()]
    steps = [passes[i : i + learner.passes_per_step] for i in range(0, len(passes), learner.passes_per_step)]
    train_in_order(learner, steps, learning_rate=float(arrays["train_lr"]))

    assert learner.divergences == pytest.approx(arrays["minibatch_js"].tolist(), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(torch.stack(learner.after), torch.from_numpy(arrays["w_after_step"]), **CLOSE)
    for side, name in enumerate(("positive", "negative")):
        assert learner.mean_latents(side).item() == pytest.approx(float(arrays[f"{name}_mean_latent"]), abs=1e-5)


def test_steered_tokens_agree_with_the_authors(learner: Recorded, arrays: Arrays) -> None:
    factors, tokens = torch.from_numpy(arrays["steer_factors"]).float(), arrays["steer_tokens"]
    artifact = {
        "vector": torch.from_numpy(arrays["w_after_step"][-1])[None],
        "peak": torch.ones(1),
        "opposite": -torch.ones(1),  # the factors given are targets
        "layer": torch.tensor(learner.site.layer),
        "prefix": torch.tensor(int(arrays["prefix"])),
    }
    steered = CDAS().intervention(
        artifact, {"group": torch.zeros(len(factors), dtype=torch.long)}, {"strength": factors}
    )
    prompts = [words(row[1:]) for row in arrays["steer_prompts"]]
    generated = learner.subject.generate(prompts, max_new_tokens=tokens.shape[1], intervention=steered)
    assert generated == [words(row) for row in tokens]


def test_edits_and_divergence_agree_with_the_authors(arrays: Arrays) -> None:
    base, w = torch.from_numpy(arrays["base"]), torch.from_numpy(arrays["W"])[torch.from_numpy(arrays["idx"])]
    prompts, prefix = prompts_alone(base.shape[:2]), int(arrays["prefix"])
    clamped, _ = Clamp(w, torch.from_numpy(arrays["factor"]), prefix).apply(base, prompts, {})
    torch.testing.assert_close(clamped, torch.from_numpy(arrays["y_clamp"]), **CLOSE)

    # Their interchange takes each token's latent from the same token of the source.
    source = torch.from_numpy(arrays["source"])
    latents = torch.einsum("btd,bd->bt", source, w)
    for token in range(base.shape[1]):
        one = base[:, token : token + 1]
        exchanged, _ = Clamp(w, latents[:, token]).apply(one, prompts_alone(one.shape[:2]), {})
        torch.testing.assert_close(exchanged[:, 0], torch.from_numpy(arrays["y_interchange"])[:, token], **CLOSE)

    def predicting(side: str) -> Tensor:
        chosen = torch.from_numpy(arrays[f"js_{side}_labels"] != -100)
        return torch.from_numpy(arrays[f"js_{side}_logits"])[:, :-1][chosen[:, 1:]]

    divergence = jensen_shannon(predicting("base"), predicting("source")).mean()
    assert divergence.item() == pytest.approx(float(arrays["js_loss"]), rel=1e-5)
