"""ReFT-r1: the edit in training by hand, a planted concept, groups side by side, and the authors' values."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from tinylm import tinylm_subject, words
from torch import Tensor

from harness import directions
from harness.batch_plan import Plan
from harness.subject.load import ModelConfig, load_model
from harness.subject.local import LocalSubject, Template
from harness.subject.scorers import open_subject
from harness.training import Part, Training, train
from harness.types import Demonstration, Example, FitData, Forward, Layout, Site, Where
from harness.workspace import Workspace
from methods.reft_r1 import LatentLearner, ReFTr1, TopLatents, largest_latents

SHORT = Training(epochs=2, batch_size=4, learning_rate=0.05, pass_tokens=200)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def where_of(shape: torch.Size, real: Tensor | None = None) -> Where:
    positions = torch.arange(shape[1]).expand(shape[0], -1)
    return Where(positions, real, torch.full((shape[0],), shape[1]), True, Site(0))


def test_the_edit_in_training_by_hand() -> None:
    # Latents along w = e1: 9 (prefix), 1, 4, -2, 3, 5 (padding). The two largest are 4 and 3; the others 1 and 0.
    h = torch.zeros(1, 6, 2)
    h[0, :, 0] = torch.tensor([9.0, 1.0, 4.0, -2.0, 3.0, 5.0])
    where = where_of(h.shape[:2], torch.tensor([[True] * 5 + [False]]))
    edited, carry = TopLatents(torch.tensor([[1.0, 0.0]]), prefix_length=1, top=2).apply(h, where, {})
    assert edited[0, :, 0].tolist() == [9.0, 4.5, 7.5, 1.5, 6.5, 5.0]
    assert carry["0.block/others"].tolist() == [0.25]


def test_a_text_shorter_than_the_top_averages_what_it_has() -> None:
    h = torch.tensor([[[2.0], [4.0], [7.0]]])
    where = where_of(h.shape[:2], torch.tensor([[True, True, False]]))
    edited, carry = TopLatents(torch.ones(1, 1), top=8).apply(h, where, {})
    assert edited[0, :, 0].tolist() == [5.0, 7.0, 7.0]
    assert carry["0.block/others"].tolist() == [0.0]


@pytest.fixture(scope="module")
def tiny() -> LocalSubject:
    return open_subject(load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float64")))


def shown(group: str, letter: str, count: int = 8) -> list[Demonstration]:
    """Wanted completions repeat a letter, unwanted ones are plain."""
    wanted = [Demonstration(f"say {i}", f" {letter * 3}{i}{letter}", group=group) for i in range(count)]
    plain = [Demonstration(f"say {i}", f" word{i}", wanted=False, group=group) for i in range(count)]
    return [*wanted, *plain]


def test_training_makes_the_texts_more_likely_and_steering_the_wanted_ones(tiny: LocalSubject) -> None:
    data = FitData(demonstrations=tuple(shown("", "z")))
    method = ReFTr1(layer=2, top=2, training=Training(epochs=6, batch_size=4, learning_rate=0.05))
    artifact = method.fit(tiny, data)
    wanted = [text for text in data.demonstrations if text.wanted]
    parameters = {"strength": torch.full((len(wanted),), 1.0)}
    group = {"group": torch.zeros(len(wanted), dtype=torch.long)}
    prompts, completions = [text.prompt for text in wanted], [text.completion for text in wanted]

    def likelihood(strength: float) -> float:
        scaled = {"strength": parameters["strength"] * strength}
        steered = method.intervention(artifact, group, scaled)
        return float(
            torch.stack([v.mean() for v in tiny.loglikelihood(prompts, completions, intervention=steered)]).mean()
        )

    assert likelihood(1.0) > likelihood(0.0) + 0.1 > likelihood(-1.0) + 0.1


def test_groups_learn_side_by_side_what_they_learn_alone(tiny: LocalSubject) -> None:
    both = shown("a", "z") + shown("b", "q")
    method = ReFTr1(layer=1, top=3, sparsity=0.1, training=SHORT)
    together = method.fit(tiny, FitData(demonstrations=tuple(both)))
    condition = method.condition(tiny, together, [Example("1", "?", group="b"), Example("2", "?", group="a")])
    assert condition["group"].tolist() == [1, 0]
    for number, group in enumerate("ab"):
        alone = method.fit(tiny, FitData(demonstrations=tuple(text for text in both if text.group == group)))
        torch.testing.assert_close(together["vector"][number], alone["vector"][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together["peak"][number], alone["peak"][0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together["vector"][0], together["vector"][1], atol=1e-3)


def test_peaks_are_of_wanted_texts_and_never_zero(tiny: LocalSubject) -> None:
    learner = LatentLearner(tiny, shown("a", "z") + shown("b", "q"), Site(1), 2, 0.0)
    state = tiny.capture([learner.texts[0].prompt], [learner.texts[0].completion], [Site(1)], pool="last")[Site(1)][0]
    vectors = torch.stack([directions.unit(state), torch.zeros_like(state)])
    peaks = largest_latents(tiny, learner, Site(1), vectors)
    found = []
    for chunk in tiny.capture_tokens(["say 3"], [learner.texts[3].completion], [Site(1)]):
        found.append(chunk.states[Site(1)][tiny.prefix_length :] @ vectors[0])
    assert peaks[0] >= torch.cat(found).max() - 1e-5
    assert peaks[1] == 50.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"layer": 4}, "layer must be a whole number from 0 to 3, got 4"), ({"top": 0}, "top must be at least 1")],
)
def test_wrong_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReFTr1(**changes).check(Layout(num_layers=4, width=8, num_heads=1, head_width=8))


def test_no_texts_are_refused(tiny: LocalSubject) -> None:
    with pytest.raises(ValueError, match="no texts to learn from"):
        ReFTr1().fit(tiny, FitData())


Arrays = Mapping[str, np.ndarray]


@pytest.fixture
def reference(golden: Callable[[str], Arrays]) -> Arrays:
    return golden("axbench_trained")


@pytest.fixture
def subject(golden: Callable[[str], Arrays], reference: Arrays) -> LocalSubject:
    """The authors' model; the prefix of their prompts is a template here."""
    plain = tinylm_subject(golden("tinylm"))
    prefix = words(reference["train_prompt_ids"][0, : int(reference["train_prefix"])])
    return LocalSubject(plain.network, plain.tokenizer, Template(prefix + " {question}", chat=False), plain.name)


@pytest.fixture
def texts(reference: Arrays) -> list[Demonstration]:
    prefix = int(reference["train_prefix"])
    pairs = zip(reference["train_prompt_ids"], reference["train_completion_ids"], strict=True)
    return [Demonstration(words(prompt[prefix:]), words(completion)) for prompt, completion in pairs]


class Recorded(LatentLearner):
    """Notes what the authors' values are compared with."""

    def language_loss(self, part: Part, passed: Forward) -> Tensor:
        loss = super().language_loss(part, passed)
        self.losses.append(loss.item())
        return loss

    def after_step(self) -> None:
        self.after.append(self.w[0].clone())


def test_training_agrees_with_the_authors(subject: LocalSubject, texts: list, reference: Arrays) -> None:
    steps = tuple((tuple(rows),) for rows in reference["train_order"].tolist())
    top, weight = int(reference["lsreft_topk"]), float(reference["lsreft_coeff"])
    learner = Recorded(subject, texts, Site(int(reference["train_layer"])), top, weight)
    learner.losses, learner.after = [], []
    settings = Training(batch_size=1, learning_rate=float(reference["train_lr"]))
    lengths = [count.total for count in learner.counts]
    train(learner, Plan(steps, (len(steps),)), settings, Workspace(), lengths)

    assert learner.losses == pytest.approx(reference["lsreft_lm_loss_pad_excluded"].tolist(), rel=1e-5)
    expected = torch.from_numpy(reference["lsreft_w_after_step_pad_excluded"])
    torch.testing.assert_close(torch.stack(learner.after), expected, **CLOSE)


def test_latents_agree_with_the_authors(subject: LocalSubject, texts: list, reference: Arrays) -> None:
    site, w = Site(int(reference["train_layer"])), torch.from_numpy(reference["steer_w"])
    count = len(reference["lsreft_max_act"])
    found = torch.zeros(count)
    prompts, completions = [text.prompt for text in texts[:count]], [text.completion for text in texts[:count]]
    for chunk in subject.capture_tokens(prompts, completions, [site]):
        behind = chunk.where(chunk.position >= subject.prefix_length)
        found.scatter_reduce_(0, behind.text, (behind.states[site] @ w).relu(), "amax")
    torch.testing.assert_close(found.double(), torch.from_numpy(reference["lsreft_max_act"]), rtol=0, atol=6e-4)


def test_steered_tokens_agree_with_the_authors(subject: LocalSubject, texts: list, reference: Arrays) -> None:
    factors, tokens = reference["steer_factor"], reference["steer_new_tokens"]
    artifact = {
        "vector": torch.from_numpy(reference["steer_w"])[None],
        "peak": torch.from_numpy(reference["steer_max_act"])[None],
        "layer": torch.tensor(int(reference["train_layer"])),
    }
    group = torch.zeros(len(factors), dtype=torch.long)
    steered = ReFTr1().intervention(artifact, {"group": group}, {"strength": torch.from_numpy(factors)})
    prompts = [text.prompt for text in texts[: len(factors)]]
    found = subject.generate(prompts, max_new_tokens=tokens.shape[1], intervention=steered)
    assert found == [words(row) for row in tokens]


@pytest.mark.parametrize("top", [1, 3, 8])
def test_the_edit_in_training_agrees_with_the_authors(top: int, reference: Arrays) -> None:
    base = torch.from_numpy(reference["base"])
    w = torch.from_numpy(reference["W"])[torch.from_numpy(reference["idx"])]
    edited, _ = TopLatents(w, top=top).apply(base, where_of(base.shape[:2]), {})
    torch.testing.assert_close(edited, torch.from_numpy(reference[f"y_topk_add_k{top}"]), **CLOSE)


def test_the_penalty_agrees_with_the_authors(reference: Arrays) -> None:
    base, mask = torch.from_numpy(reference["base"]), torch.from_numpy(reference["l1_mask"]).bool()
    w = torch.from_numpy(reference["W"])[torch.from_numpy(reference["idx"])]
    # Theirs takes the largest of all tokens and masks afterwards; ours never sees what is masked.
    latents = torch.from_numpy(reference["latent_k3"])
    outside = latents.masked_fill(mask, 0.0).amax(1) < latents.topk(3, dim=1).values[:, -1]
    _, carry = TopLatents(w, top=3).apply(base, where_of(base.shape[:2], mask), {})
    theirs = (torch.from_numpy(reference["non_topk_k3"]) * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(carry["0.block/others"][outside], theirs[outside], **CLOSE)
    assert theirs.mean().item() == pytest.approx(float(reference["l1_k3"]), rel=1e-5)
