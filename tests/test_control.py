"""Controls: what they change, and what they must leave alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harness.control import BestOfN, Control, GoldInPrompt, RandomDirection, SameNorm, Shuffled, stable_seed
from harness.subject.load import Loaded
from harness.subject.scorers import open_subject
from harness.tasks.facts import Facts
from harness.types import Access, Demonstration, Example, FitData, Intervention, Layout, Pair, Site, Where
from harness.workbench import Request, Workbench
from methods.fusion import FusionSteering, MeanShift
from methods.single_vector import SingleVector

LAYOUT = Layout(num_layers=4, width=8, num_heads=2, head_width=4)
EXAMPLES = [Example(f"e{i}", f"Question {i}?", f"Answer {i}") for i in range(7)]


def test_seeds_depend_on_every_part_and_nothing_else() -> None:
    assert stable_seed(0, "a", 1) == stable_seed(0, "a", 1)
    assert len({stable_seed(0, "a", 1), stable_seed(0, "a", 2), stable_seed(1, "a", 1), stable_seed(0, "a1")}) == 4
    assert 0 <= stable_seed("x") < 2**63


def test_no_control_changes_nothing() -> None:
    data = FitData(pairs=(Pair("p", "+", "-"),))
    control = Control()
    assert control.fit_data(data, 0) is data
    assert control.fed(EXAMPLES, 0) == EXAMPLES
    assert control.instruction(EXAMPLES[0]) == ""


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shuffled_gives_everybody_anothers_condition_once(count: int) -> None:
    examples = EXAMPLES[:count]
    fed = Shuffled().fed(examples, 0)
    assert all(mine.id != other.id for mine, other in zip(examples, fed, strict=True))
    assert sorted(example.id for example in fed) == [example.id for example in examples]
    assert fed == Shuffled().fed(examples, 0)


def test_shuffled_needs_another_example() -> None:
    with pytest.raises(ValueError, match="at least 2 examples"):
        Shuffled().fed(EXAMPLES[:1], 0)


def test_shuffled_contrasts_keep_their_texts_and_lose_their_labels() -> None:
    pairs = tuple(Pair(f"p{i}", f"+{i}", f"-{i}", group="ab"[i % 2]) for i in range(40))
    labelled = tuple((f"p{i}", f"c{i}", i % 2 == 0) for i in range(40))
    data = FitData(pairs=pairs, source=tuple("abcd"), target=tuple("ABCD"), labelled=labelled)

    dealt = Shuffled().fit_data(data, 3)
    swapped = [pair.positive.startswith("-") for pair in dealt.pairs]
    assert sum(swapped[0::2]) == sum(swapped[1::2]) == 10, "half of each group, so that nothing of the contrast is left"
    for old, new in zip(pairs, dealt.pairs, strict=True):
        assert {new.positive, new.negative} == {old.positive, old.negative}

    assert sorted(dealt.source + dealt.target) == sorted("abcdABCD")
    assert sum(is_wanted for _, _, is_wanted in dealt.labelled) == 20
    assert [row[:2] for row in dealt.labelled] == [row[:2] for row in labelled]
    assert dealt.labelled != labelled

    assert dealt == Shuffled().fit_data(data, 3)


def shown(group: str, kind: str, count: int, is_wanted: bool) -> list[Demonstration]:
    return [
        Demonstration(f"p{group}{i}", f"{kind}{group}{i}", f"concept {group}", is_wanted, group) for i in range(count)
    ]


def test_shuffled_demonstrations_lose_their_group_and_their_side() -> None:
    demonstrations = tuple(
        one for group in "ab" for one in (*shown(group, "+", 20, True), *shown(group, "-", 20, False))
    )

    dealt = Shuffled().fit_data(FitData(demonstrations=demonstrations), 3).demonstrations
    texts = [(one.prompt, one.completion) for one in demonstrations]
    assert sorted((one.prompt, one.completion) for one in dealt) == sorted(texts)
    assert [(one.group, one.concept) for one in dealt] == [(one.group, one.concept) for one in demonstrations]

    for group in "ab":
        own = [one for one in dealt if one.group == group]
        assert sum(one.wanted for one in own) == 20
        for is_wanted in (True, False):
            positive = sum(one.completion.startswith("+") for one in own if one.wanted == is_wanted)
            assert positive == 10, "half of each kind, so that nothing of the contrast is left"
        moved = [one for one in own if one.completion.startswith("+") and group not in one.completion]
        assert 5 <= len(moved) <= 15, "texts come from all groups"
    assert dealt == Shuffled().fit_data(FitData(demonstrations=demonstrations), 3).demonstrations


def test_shuffled_concepts_without_a_contrast_change_texts_and_stay_wanted() -> None:
    demonstrations = (*shown("a", "+", 12, True), *shown("b", "+", 12, True))
    dealt = Shuffled().fit_data(FitData(demonstrations=demonstrations), 0).demonstrations
    assert all(one.wanted for one in dealt)
    assert sum(one.group in one.completion for one in dealt) < 20
    assert [one.concept for one in dealt] == [one.concept for one in demonstrations]


def shift(count: int) -> Intervention:
    generator = torch.Generator().manual_seed(1)
    edits = {
        Site(layer): MeanShift(torch.randn(count, 8, generator=generator), torch.full((count,), 0.3))
        for layer in (0, 2)
    }
    return Intervention(edits)


def passed(intervention: Intervention, site: Site, h: Tensor) -> Tensor:
    positions = torch.arange(h.shape[1]).expand(h.shape[:2])
    where = Where(positions, None, torch.full((len(h),), h.shape[1]), True, site)
    return intervention.edits[site].apply(h, where, {})[0]


def test_a_random_direction_moves_as_far_at_every_token_and_somewhere_else() -> None:
    names = ["a", "b", "a"]
    plain, control = shift(3), RandomDirection()
    wrapped = control.wrap(plain, names, LAYOUT, 0)
    h = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(2))

    for site in plain.edits:
        real, random = (passed(intervention, site, h) - h for intervention in (plain, wrapped))
        torch.testing.assert_close(random.norm(dim=-1), real.norm(dim=-1))
        cosine = torch.nn.functional.cosine_similarity(real[:, 0], random[:, 0])
        assert (cosine.abs() < 0.95).all()
        directions = torch.nn.functional.normalize(random[:, 0], dim=-1)
        torch.testing.assert_close(directions[0], directions[2])
        assert not torch.allclose(directions[0], directions[1])

    again = control.wrap(plain, names, LAYOUT, 0)
    assert torch.equal(passed(again, Site(0), h), passed(wrapped, Site(0), h))
    rows = torch.tensor([2, 1])
    assert torch.equal(passed(wrapped.take(rows), Site(0), h[rows]), passed(wrapped, Site(0), h)[rows])


def test_a_random_direction_does_not_depend_on_the_other_sites_and_rows() -> None:
    def direction(ids: list[str], layers: list[int]) -> Tensor:
        edits = {Site(layer): MeanShift(torch.ones(len(ids), 8), torch.ones(len(ids))) for layer in layers}
        wrapped = RandomDirection().wrap(Intervention(edits), ids, LAYOUT, 0).edits[Site(2)]
        assert isinstance(wrapped, SameNorm)
        return wrapped.direction[-1]

    alone = direction(["b"], [2])
    assert torch.equal(alone, direction(["a", "b"], [0, 2, 3]))
    assert not torch.equal(alone, direction(["a"], [2]))


def test_a_random_direction_leaves_alone_what_the_edit_leaves_alone() -> None:
    wrapped = RandomDirection().wrap(shift(2), ["a", "b"], LAYOUT, 0)
    h = torch.randn(2, 4, 8)
    real = torch.tensor([[False, True, True, True], [True] * 4])
    positions = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3]])
    where = Where(positions, real, torch.tensor([3, 4]), True, Site(0))
    edited, _ = wrapped.edits[Site(0)].apply(h, where, {})
    assert torch.equal(edited[0, 0], h[0, 0])
    assert not torch.equal(edited[0, 1], h[0, 1])


@pytest.fixture
def bench(load_tiny: Callable[..., Loaded]) -> Callable[..., Workbench]:
    task = Facts(limit=4, train_size=16, max_new_tokens=3)

    def build(method: object, control: Control) -> Workbench:
        workbench = Workbench(open_subject(load_tiny()), task, method, control, 0)
        workbench.fit()
        workbench.feed(task.examples("test"))
        return workbench

    return build


def test_shuffled_references_are_those_of_the_examples_that_are_fed(bench: Callable) -> None:
    method = FusionSteering(segments={"all": 0.1})
    plain, shuffled = bench(method, Control()), bench(method, Shuffled())
    examples = plain.task.examples("test")
    fed = Shuffled().fed(examples, 0)
    mine = plain.intervention([Request(example, {"k_all": 0.1}) for example in fed])
    theirs = shuffled.intervention([Request(example, {"k_all": 0.1}) for example in examples])
    torch.testing.assert_close(theirs.edits[Site(1)].reference, mine.edits[Site(1)].reference)
    assert [shuffled.prompt(example) for example in examples] == [plain.prompt(example) for example in examples]


def test_only_the_control_that_declares_it_puts_the_answer_into_the_prompt(bench: Callable) -> None:
    method = SingleVector(layer=1, strength=0.2)
    with_gold, without = bench(method, GoldInPrompt()), bench(method, Control())
    for example in with_gold.task.examples("test"):
        assert f": {example.answer}" in with_gold.prompt(example)
        assert f": {example.answer}" not in without.prompt(example)
    assert GoldInPrompt.access == {Access.GOLD}


@pytest.mark.parametrize("control", [GoldInPrompt(), BestOfN()])
def test_controls_that_replace_the_steering_do_not_steer(bench: Callable, control: Control) -> None:
    workbench = bench(SingleVector(layer=1, strength=0.2), control)
    assert workbench.artifact == {}
    request = Request(workbench.task.examples("test")[0], {"layer": 1.0, "strength": 0.2})
    assert workbench.intervention([request]).edits == {}
