"""RePS: the edit and loss by hand, rivals, a concept learnt in both directions and forms, and the authors' values."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from learning import likelihood, prompts_alone, shown, train_in_order
from tinylm import behind_prefix, words
from torch import Tensor

from harness.low_rank import SubspaceEdit
from harness.subject.load import ModelConfig, load_model
from harness.subject.local import LocalSubject
from harness.subject.scorers import open_subject
from harness.training import Part, Training
from harness.types import Demonstration, FitData, Intervention, Layout, Site
from methods.reps import AddOrRemove, RePS, VectorLearner, plain_replies, preference_loss

Arrays = Mapping[str, np.ndarray]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SHORT = Training(epochs=10, batch_size=4, learning_rate=0.02, pass_tokens=2000)


@pytest.fixture(scope="module")
def tiny() -> LocalSubject:
    return open_subject(load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float64")))


@pytest.fixture
def arrays(golden: Callable[[str], Arrays]) -> Arrays:
    return golden("reps")


def test_the_edit_by_hand() -> None:
    # v = 2 e1, bias 1. Adding 3 shifts by (3 + 1) * 2; removal takes relu(2 h + 1) / 4 * 2 out, and nothing below 0.
    h = torch.tensor([[[9.0], [4.0], [-3.0]]] * 2)
    edit = AddOrRemove(torch.full((2, 1), 2.0), torch.ones(2), torch.tensor([3.0, 0.0]), prefix_length=1)
    edited, _ = edit.apply(h, prompts_alone(h.shape[:2]), {})
    assert edited[..., 0].tolist() == [[9.0, 12.0, 5.0], [9.0, -0.5, -3.0]]


def test_the_loss_weighs_a_preferred_reply_that_is_unlikely() -> None:
    values = [torch.tensor([value]) for value in (-6.0, -4.0, -9.0, -5.0, 3.0, 2.0)]
    assert preference_loss(*values).item() == pytest.approx(float(np.log1p(np.exp(8.0 - 2.0))))
    values[2:4] = values[3], values[2]
    assert preference_loss(*values).item() == pytest.approx(float(np.log1p(np.exp(2.0 - 2.0))))


def test_the_rival_is_the_unwanted_text_of_the_prompt_or_the_models_own(tiny: LocalSubject) -> None:
    positives = [Demonstration("one", " x", group="a"), Demonstration("two", " y", group="a")]
    others = [
        Demonstration("one", " plain", wanted=False, group="a"),
        Demonstration("two", " b", wanted=False, group="b"),
    ]
    (own,) = tiny.generate(["two"], max_new_tokens=5)
    assert plain_replies(tiny, positives, [*positives, *others], 5) == [" plain", own]


@pytest.mark.parametrize("form", ["vector", "loreft"])
def test_each_group_learns_its_own_concept(tiny: LocalSubject, form: str) -> None:
    method = RePS(layer=2, form=form, rank=2, training=SHORT)  # pyright: ignore[reportArgumentType]
    artifact = method.fit(tiny, FitData(demonstrations=tuple(shown("a", "z", 4) + shown("b", "q", 4))))
    for number, letter in enumerate("zq"):
        own = likelihood(tiny, method, artifact, letter, 4.0, number)
        assert own > likelihood(tiny, method, artifact, letter, 0.0) + 0.5
        assert own > likelihood(tiny, method, artifact, letter, 4.0, 1 - number) + 0.5
    latents = method.latents(tiny, artifact, [("say 9", " zzz9z")], ["a"])
    assert (latents is None) == (form == "loreft")


def test_removal_in_the_subspace_empties_it(tiny: LocalSubject) -> None:
    method = RePS(layer=2, form="loreft", rank=2, training=Training(batch_size=8, learning_rate=1e-3))
    artifact = method.fit(tiny, FitData(demonstrations=tuple(shown("", "z"))))
    rotation = artifact["rotation"]
    edit = SubspaceEdit(rotation, torch.zeros_like(rotation), torch.zeros(1, 2), torch.ones(1))
    h = torch.randn(1, 5, tiny.layout.width, generator=torch.Generator().manual_seed(0))
    edited, _ = edit.apply(h, prompts_alone(h.shape[:2]), {})
    assert (edited @ rotation.mT).abs().max() < 1e-5


class Recorded(VectorLearner):
    """Steers with given factors, and notes what the authors' values are compared with."""

    def follow(self, factors: Mapping[int, list[Tensor]]) -> None:
        """Take these factors for the passes of each step, in order."""
        self.given, self.logprobs, self.after = factors, [], []

    def factors(self, part: Part) -> Tensor:
        return self.given[part.step].pop(0)

    def _pass(self, part: Part) -> object:
        passed = super()._pass(part)
        self.logprobs.append(passed.logprobs().sum(1).detach())
        return passed

    def after_step(self) -> None:
        self.after.append((self.v[0].clone(), self.bias[0].clone()))


def test_training_agrees_with_the_authors(golden: Callable[[str], Arrays], arrays: Arrays) -> None:
    prefix, per_step = int(arrays["train_prefix"]), int(arrays["minibatches_per_step"])
    subject = behind_prefix(golden("tinylm"), arrays["train_prompt_ids"][0, :prefix])
    prompts = [words(row[prefix:]) for row in arrays["train_prompt_ids"]]
    positives = [Demonstration(p, words(reply)) for p, reply in zip(prompts, arrays["train_winning_ids"], strict=True)]
    plain = [words(reply) for reply in arrays["train_losing_ids"]]
    learner = Recorded(subject, positives, plain, Site(int(arrays["train_layer"])), RePS())
    with torch.no_grad():
        learner.v.copy_(torch.from_numpy(arrays["init_w"]))

    # A row of theirs is one text: the preferred ones of each pair, to add and to remove, then the others.
    half = arrays["row_example"].shape[1] // 2
    adding = arrays["row_factor"][:, :half] != 0
    order = [arrays["row_example"][i, :half][adding[i]].tolist() for i in range(len(adding))]
    drawn = [torch.from_numpy(arrays["row_factor"][i].reshape(2, half)[:, adding[i]]) for i in range(len(adding))]
    steps = [order[i : i + per_step] for i in range(0, len(order), per_step)]
    learner.follow({s: drawn[s * per_step : (s + 1) * per_step] for s in range(len(steps))})
    history = train_in_order(learner, steps, learning_rate=float(arrays["train_lr"]))

    expected = arrays["minibatch_losses"].mean(1).reshape(-1, per_step).mean(1)
    assert history.losses == pytest.approx(expected.tolist(), rel=1e-5)
    for i, logprobs in enumerate(learner.logprobs):
        towards, towards_plain, away, away_plain = logprobs.chunk(4)
        preferred, other = torch.from_numpy(arrays["minibatch_logps"][i])
        mask = torch.from_numpy(adding[i])
        torch.testing.assert_close(
            torch.stack([towards, towards_plain]), torch.stack([preferred, other])[:, mask], **CLOSE
        )
        torch.testing.assert_close(torch.stack([away_plain, away]), torch.stack([preferred, other])[:, ~mask], **CLOSE)
    for place, name in enumerate(("w_after_step", "bias_after_step")):
        learnt = torch.stack([values[place] for values in learner.after])
        torch.testing.assert_close(learnt, torch.from_numpy(arrays[name]), **CLOSE)


def test_the_edit_in_training_agrees_with_the_authors(arrays: Arrays) -> None:
    base, factor = torch.from_numpy(arrays["base"]), torch.from_numpy(arrays["factor"])
    rows, given = len(base), [torch.from_numpy(arrays[name]) for name in ("v", "bias")]
    edit = AddOrRemove(given[0].expand(rows, -1), given[1].expand(rows), factor)
    edited, _ = edit.apply(base, prompts_alone(base.shape[:2]), {})
    torch.testing.assert_close(edited, torch.from_numpy(arrays["y_train"]), **CLOSE)


def test_the_edit_of_a_run_agrees_with_the_authors(arrays: Arrays) -> None:
    base, artifact = (
        torch.from_numpy(arrays["base"]),
        {"vector": torch.from_numpy(arrays["V"]), "layer": torch.tensor(0)},
    )
    artifact["peak"] = torch.ones(len(artifact["vector"]))
    condition = {"group": torch.from_numpy(arrays["idx"])}
    steered: Intervention = RePS().intervention(artifact, condition, {"strength": torch.from_numpy(arrays["mag"])})
    edited, _ = steered.edits[Site(0)].apply(base, prompts_alone(base.shape[:2]), {})
    torch.testing.assert_close(edited, torch.from_numpy(arrays["y_add"]), **CLOSE)


def test_the_loss_agrees_with_the_authors(arrays: Arrays) -> None:
    names = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected", "winning_lens", "losing_lens")
    loss = preference_loss(*(torch.from_numpy(arrays[name]) for name in names))
    torch.testing.assert_close(loss, torch.from_numpy(arrays["loss_scaled_simpo"]), **CLOSE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 4}, "layer must be a whole number from 0 to 3, got 4"),
        ({"form": "lora"}, "form must be one of vector, loreft, got 'lora'"),
        ({"rank": 9}, "rank must be from 1 to 8"),
    ],
)
def test_wrong_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RePS(**changes).check(Layout(num_layers=4, width=8, num_heads=1, head_width=8))
