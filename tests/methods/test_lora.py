"""LoRA as an edit: equal to merged weights, rows with matrices of their own, and a concept that it learns to write."""

import pytest
import torch
from torch import Tensor

from harness import directions
from harness.subject.load import ModelConfig, load_model
from harness.subject.local import LocalSubject
from harness.subject.sampling import Sampling
from harness.subject.scorers import open_subject
from harness.training import Training
from harness.types import Demonstration, FitData, Intervention, Layout, Site
from methods.lora import LoRA

FAMILIES = {"llama": "model.layers", "gemma2": "model.layers", "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}
PROJECTIONS = {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense"}
PROMPTS, COMPLETIONS = ["one two", "a longer question", "x"], [" so", " and on", " yes"]
METHOD = LoRA(layers=(0, 2), rank=2, alpha=4.0)


def subject_of(family: str) -> LocalSubject:
    return open_subject(load_model(ModelConfig(kind="tiny", family=family, device="cpu", dtype="float64")))


def random_artifact(subject: LocalSubject, groups: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    heads = subject.layout.site_width(Site(0, "heads"))
    return {
        "down": 0.1 * torch.randn(groups, 2, 2, heads, generator=generator, dtype=torch.float64),
        "up": torch.randn(groups, 2, subject.layout.width, 2, generator=generator, dtype=torch.float64),
        "layers": torch.tensor([0, 2]),
    }


def merged(family: str, artifact: dict[str, Tensor], group: int, strength: float) -> LocalSubject:
    """The same model with the update added to its weights."""
    subject = subject_of(family)
    blocks = subject.network.model.get_submodule(FAMILIES[family])
    with torch.no_grad():
        for place, layer in enumerate(artifact["layers"].tolist()):
            update = strength * artifact["up"][group, place] @ artifact["down"][group, place]
            weight = blocks[layer].get_submodule(PROJECTIONS.get(family, "self_attn.o_proj")).weight
            weight += update.T if family == "gpt2" else update  # its projections are stored the other way round
    return subject


def written(
    subject: LocalSubject, prompts: list[str], intervention: Intervention | None = None
) -> list[tuple[int, ...]]:
    """Greedy token ids, whatever would stop a completion."""
    ids = [subject.encode(subject.render(prompt)) for prompt in prompts]
    rows = subject.decode(ids, intervention or Intervention(), Sampling(12, ignore_stop=True))
    return [row.token_ids for row in rows]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_edit_is_equal_to_merged_weights(family: str) -> None:
    subject, strengths, groups = subject_of(family), [1.0, 0.3, 1.7], [1, 0, 1]
    artifact = random_artifact(subject, groups=2)
    steered = METHOD.intervention(
        artifact, {"group": torch.tensor(groups)}, {"strength": torch.tensor(strengths, dtype=torch.float64)}
    )
    logprobs = subject.loglikelihood(PROMPTS, COMPLETIONS, intervention=steered)
    rows, unsteered = written(subject, PROMPTS, steered), written(subject, PROMPTS)
    for row, (group, strength) in enumerate(zip(groups, strengths, strict=True)):
        other = merged(family, artifact, group, strength)
        (expected,) = other.loglikelihood([PROMPTS[row]], [COMPLETIONS[row]])
        torch.testing.assert_close(logprobs[row], expected, rtol=1e-5, atol=1e-6)  # norms compute in float32
        assert written(other, [PROMPTS[row]]) == [rows[row]]
        assert rows[row] != unsteered[row]


def shown(group: str, letter: str) -> list[Demonstration]:
    positives = [Demonstration(f"say {i}", f" {letter * 3}{i}{letter}", group=group) for i in range(6)]
    return [*positives, Demonstration("say", " plain", wanted=False, group=group)]


def test_it_learns_to_write_what_it_was_shown_and_each_group_its_own() -> None:
    subject = subject_of("llama")
    method = LoRA(rank=2, training=Training(epochs=15, batch_size=6, learning_rate=0.02, pass_tokens=120))
    data = FitData(demonstrations=tuple(shown("a", "z") + shown("b", "q")))
    artifact = method.fit(subject, data)
    heads, width = subject.layout.site_width(Site(0, "heads")), subject.layout.width
    layers = len(artifact["layers"])
    assert artifact["down"].shape == (2, layers, 2, heads)
    assert artifact["up"].shape == (2, layers, width, 2)

    def likelihood(letter: str, group: int | None) -> float:
        steered = Intervention()
        if group is not None:
            steered = method.intervention(artifact, {"group": torch.tensor([group])}, {"strength": torch.ones(1)})
        (logprobs,) = subject.loglikelihood(["say 9"], [f" {letter * 3}9{letter}"], intervention=steered)
        return float(logprobs.sum())

    assert likelihood("z", 0) > likelihood("z", None) + 3
    assert likelihood("q", 1) > likelihood("q", None) + 3
    assert likelihood("z", 0) > likelihood("z", 1) + 1

    alone = method.fit(subject, FitData(demonstrations=tuple(shown("b", "q"))))
    torch.testing.assert_close(artifact["up"][1], alone["up"][0], rtol=1e-3, atol=1e-4)


def test_unwanted_texts_are_learnt_from_only_where_asked_for() -> None:
    subject, data = subject_of("llama"), FitData(demonstrations=tuple(shown("a", "z")))
    settings = Training(epochs=1, batch_size=20, learning_rate=0.01)
    updates = [LoRA(texts=texts, training=settings).fit(subject, data)["up"] for texts in ("wanted", "all")]  # pyright: ignore
    assert not torch.allclose(updates[0], updates[1])
    alone = FitData(demonstrations=tuple(text for text in data.demonstrations if text.wanted))
    assert torch.equal(updates[0], LoRA(training=settings).fit(subject, alone)["up"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (1, 4)}, "layers must be a whole number from 0 to 3, got 4"),
        ({"rank": 0}, "rank must be from 1 to 8, got 0"),
        ({"texts": "some"}, "texts must be one of wanted, all, got 'some'"),
    ],
)
def test_wrong_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRA(**changes).check(Layout(num_layers=4, width=8, num_heads=1, head_width=8))


def test_layers_are_spread_over_the_depth() -> None:
    layout = Layout(num_layers=26, width=8, num_heads=1, head_width=8)
    assert directions.chosen_layers(layout, None) == [5, 10, 15, 20]
    assert directions.chosen_layers(layout, (7, 3)) == [3, 7]
