"""CAST: the decision by hand, a planted condition, the laws across passes, and values from the authors' code."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_subject import ToySubject, decode_step, run_blocks, where_of

from harness import directions
from harness.types import Artifact, FitData, Intervention, Layout, Pair, Site, Where
from methods.cast import CAST, ConditionProbe, best_cut, f1_scores, first_component, similarity

LAYOUT = Layout(num_layers=6, width=24, num_heads=4, head_width=6)


@pytest.fixture
def reference(golden: Callable[[str], Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(array) for name, array in golden("cast").items()}


def test_similarity_by_hand() -> None:
    direction, h = torch.tensor([2.0, 0.0]), torch.tensor([3.0, 4.0])
    # The projection is (3, 0); tanh keeps its direction, so the cosine is 3/5, whatever the vector's sign.
    assert similarity(h, direction).item() == pytest.approx(0.6)
    assert similarity(h, -direction).item() == pytest.approx(0.6)
    bent = similarity(torch.tensor([0.5, 2.0]), torch.tensor([1.0, 1.0]))
    assert bent.item() == pytest.approx((0.5 + 2.0) / (2**0.5 * 4.25**0.5))


def test_f1_by_hand() -> None:
    values, is_positive = torch.tensor([0.1, 0.4, 0.2, 0.9]), torch.tensor([True, True, False, False])
    # Below 0.3: {0.1, 0.2}, one of two right, one of two found. Below 0.5: all wanted and one other.
    assert f1_scores(values, is_positive, torch.tensor([0.3, 0.5]))[:, 0].tolist() == pytest.approx([0.5, 0.8])
    assert f1_scores(values, is_positive, torch.tensor([0.4]))[0].tolist() == pytest.approx([0.5, 0.0])


def test_cut_takes_the_first_best_row_and_side() -> None:
    scores = torch.tensor([[0.1, 0.2, 0.1, 0.2], [0.8, 0.9, 0.1, 0.2], [0.1, 0.2, 0.8, 0.9]])
    is_positive = torch.tensor([True, True, False, False])
    assert best_cut(scores, is_positive)[::2] == (1, True)
    assert best_cut(scores, is_positive).threshold == pytest.approx(0.5)
    assert best_cut(scores, is_positive).f1 == 1.0
    assert best_cut(scores, is_positive, side="below")[::2] == (2, False)
    with pytest.raises(ValueError, match="no threshold separates"):
        best_cut(torch.ones(2, 4), is_positive)


def test_equal_scores_go_to_the_side_below() -> None:
    # At 0.5 either side picks one of the two wanted texts and nothing else.
    cut = best_cut(torch.tensor([[0.0, 1.0]]), torch.tensor([True, True]))
    assert (cut.threshold, cut.above, cut.f1) == (0.5, False, pytest.approx(2 / 3))


def test_the_axis_points_where_most_pairs_point() -> None:
    # Two pairs rise by 1, one falls by 5: the mean falls, the majority rises.
    positive, negative = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-5.0, 0.0]]), torch.zeros(3, 2)
    assert first_component(positive, negative, pairwise=True).tolist() == [1.0, 0.0]
    assert first_component(negative, positive, pairwise=True).tolist() == [-1.0, 0.0]


@pytest.mark.parametrize("counts", [(100, 10), (10, 100), (50, 50)])
def test_unequal_classes_keep_the_axis_between_them(counts: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(count, 8, generator=generator) for count in counts)
    positive[:, 3] += 4.0
    assert first_component(positive, negative, pairwise=False)[3] > 0.9


def test_a_similarity_at_the_threshold_meets_neither_side() -> None:
    h, direction = torch.tensor([[[0.3, 0.4]]]), torch.tensor([1.0, 0.5])
    exact = similarity(h[:, 0], direction)[0]
    for above in (True, False):
        probe = ConditionProbe(direction=direction, threshold=exact, above=above)
        assert probe.read(h, where_of([1]), {})["cast/decision"].tolist() == [False]


def planted() -> tuple[ToySubject, FitData]:
    """All prompts lie along the second axis, source prompts along the first too; wanted answers along the third."""
    generator = torch.Generator().manual_seed(0)
    axes = 6 * torch.eye(8)

    def states(count: int, *along: int) -> Tensor:
        return axes[list(along)].sum(0) + torch.randn(count, 8, generator=generator)

    texts = {f"source{i}": states(2 + i % 3, 0, 1) for i in range(20)}
    texts |= {f"control{i}": states(2 + i % 3, 1) for i in range(20)}
    texts |= {f"good{i}": states(3, 2) for i in range(20)} | {f"bad{i}": -states(3, 2) for i in range(20)}
    pairs = tuple(Pair(f"control{i}", f"good{i}", f"bad{i}") for i in range(20))
    source, control = (tuple(f"{kind}{i}" for i in range(20)) for kind in ("source", "control"))
    blocks = [torch.nn.Identity() for _ in range(6)]
    return ToySubject(texts, blocks), FitData(pairs=pairs, source=source, control=control)


def steered(method: CAST, artifact: Artifact, strength: list[float]) -> Intervention:
    rows = torch.zeros(len(strength), dtype=torch.long)
    return method.intervention(artifact, {"group": rows}, {"strength": torch.tensor(strength)})


def test_planted_condition_and_behavior_are_found() -> None:
    subject, data = planted()
    artifact = CAST(normalise="unit").fit(subject, data)
    assert artifact["f1"] == 1.0
    assert artifact["condition_layer"] == 0
    assert artifact["above"]
    assert artifact["condition"][0] > 0.98
    assert artifact["behavior_layers"].tolist() == [3, 4]
    assert (artifact["behavior"][0, :, 2] > 0.98).all()
    again = CAST(normalise="unit").fit(subject, data)
    assert all(torch.equal(artifact[key], again[key]) for key in artifact)


def test_activation_norm_scales_the_vectors() -> None:
    subject, data = planted()
    scaled, plain = (CAST(normalise=choice).fit(subject, data)["behavior"] for choice in ("activation", "unit"))
    assert torch.allclose(directions.unit(scaled), plain, atol=1e-6)
    assert scaled.norm(dim=-1).flatten().tolist() == pytest.approx([6.2] * 2, abs=0.4)


def fitted(method: CAST) -> tuple[ToySubject, FitData, Artifact]:
    """A fitted method with its threshold between the similarities of source (0.7) and control prompts (0)."""
    subject, data = planted()
    return subject, data, method.fit(subject, data) | {"threshold": torch.tensor(0.5)}


@pytest.mark.parametrize("when", ["above", "below"])
def test_side_of_the_threshold(when: str) -> None:
    method = CAST(condition_when=when)
    subject, data, artifact = fitted(method)
    prompts = [data.source[0], data.control[0]]
    sites = [Site(4)]
    before = subject.capture(prompts, None, sites)[sites[0]]
    after = subject.capture(prompts, None, sites, intervention=steered(method, artifact, [0.5, 0.5]))[sites[0]]
    changed = [not torch.equal(new, old) for new, old in zip(after, before, strict=True)]
    assert changed == ([True, False] if when == "above" else [False, True])


def batch() -> tuple[Tensor, Where]:
    """A source prompt, a control prompt and a source prompt, of different lengths, then one token of each."""
    where = where_of([4, 2, 3])
    h = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(3))
    h[[0, 2], :, 0] += 6
    h[1, :, 1] += 6
    return h, where


def test_decision_is_kept_and_closed_rows_are_exactly_untouched() -> None:
    method = CAST(condition_when="above")
    subject, _, artifact = fitted(method)
    intervention, (h, where) = steered(method, artifact, [0.5, 0.5, 0.0]), batch()
    prompt, carry = run_blocks(h, subject.blocks, where, intervention)
    assert carry["cast/decision"].tolist() == [True, False, True]
    # The next token looks like a control prompt everywhere; the decision of the prompt holds.
    token = torch.eye(8)[1].expand(3, 1, 8) * 6
    decoded, _ = run_blocks(token, subject.blocks, decode_step(where), intervention, carry)
    for states, given, real in ((prompt, h, where.real), (decoded, token, torch.ones(3, 1, dtype=torch.bool))):
        assert torch.equal(states[Site(2)], given)
        final = states[Site(5)]
        assert (final[0][real[0]] != given[0][real[0]]).any(-1).all()
        assert torch.equal(final[1:], given[1:])
        assert torch.equal(final[~real], given[~real])


def test_rows_that_leave_and_join_take_their_decision_along() -> None:
    method = CAST(condition_when="above")
    subject, _, artifact = fitted(method)
    intervention, (h, where) = steered(method, artifact, [0.5, 0.4, 0.3]), batch()
    _, carry = run_blocks(h, subject.blocks, where, intervention)

    token, rows = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(4)), torch.tensor([2, 1, 2])
    step = decode_step(where)
    whole, _ = run_blocks(token, subject.blocks, step, intervention, carry)

    fewer = Where(step.positions[rows], None, step.prompt_lengths[rows], False)
    kept = {name: value[rows] for name, value in carry.items()}
    taken, _ = run_blocks(token[rows], subject.blocks, fewer, intervention.take(rows), kept)
    assert all(torch.equal(taken[site], whole[site][rows]) for site in whole)

    alone, _ = run_blocks(h[[1]], subject.blocks, where_of([4], [4]), intervention.take(torch.tensor([1])))
    assert torch.equal(alone[Site(5)], h[[1]])


def test_padding_and_completion_do_not_decide() -> None:
    probe = ConditionProbe(direction=torch.eye(8)[0], threshold=torch.tensor(0.6), above=True)
    h = torch.full((2, 4, 8), 50.0)
    h[:, 1:3] = torch.eye(8)[0] * 6
    h[1, 1:3] = torch.eye(8)[1] * 6
    positions = torch.tensor([[-1, 0, 1, 2]] * 2)
    left = Where(positions, positions >= 0, torch.tensor([2, 2]), True)
    assert probe.read(h, left, {})["cast/decision"].tolist() == [True, False]
    kept = {"cast/decision": torch.tensor([False, True])}
    assert probe.read(h, decode_step(left), kept) is kept


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"condition_when": "larger"}, "condition_when must be above, below or null, got 'larger'"),
        ({"stream": "mlp"}, "stream must be one of block, block_input, got 'mlp'"),
        ({"behavior_layers": (6,)}, "behavior_layers must be a whole number from 0 to 5, got 6"),
        ({"behavior_depth": (0.5, 0.5)}, "behavior_layers must name at least one layer, got none"),
        ({"condition_layers": (4,), "behavior_layers": (3,)}, "must not lie above behavior layer 3"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CAST(**settings).check(LAYOUT)


def test_missing_control_texts_are_refused() -> None:
    subject, data = planted()
    with pytest.raises(ValueError, match=r"source texts and control texts.*got 20 and 0"):
        CAST().fit(subject, FitData(pairs=data.pairs, source=data.source))


@pytest.mark.parametrize("kind", ["behavior", "condition"])
@pytest.mark.parametrize("centring", ["pca_pairwise", "pca_center"])
def test_vectors_agree_with_the_authors(reference: dict[str, Tensor], kind: str, centring: str) -> None:
    for layer in range(reference[f"{kind}_pos"].shape[1]):
        positive, negative = reference[f"{kind}_pos"][:, layer], reference[f"{kind}_neg"][:, layer]
        axis = first_component(positive, negative, pairwise=centring == "pca_pairwise")
        torch.testing.assert_close(axis, reference[f"{kind}_dir_{centring}"][layer], rtol=1e-5, atol=1e-5)


def test_the_fit_puts_the_authors_parts_together(reference: dict[str, Tensor], synthetic_subject: type) -> None:
    """Vectors from block outputs, similarities from block inputs, as the authors; raw texts for the condition alone."""
    condition_layer = int(reference["condition_layers"][0])

    def activation(prompt: str, completion: str, site: Site) -> Tensor:
        kind, number = (completion, prompt) if completion else prompt.split()
        part = "behavior" if completion else "condition"
        # What enters a block is what the one before it gave out.
        return reference[f"{part}_{kind}"][int(number), site.layer - (site.stream == "block_input")]

    count, layers, width = reference["condition_pos"].shape
    subject = synthetic_subject(Layout(num_layers=layers, width=width, num_heads=1, head_width=width), activation)
    source, control = (tuple(f"{kind} {i}" for i in range(count)) for kind in ("pos", "neg"))
    pairs = tuple(Pair(str(i), "pos", "neg") for i in range(len(reference["behavior_pos"])))
    method = CAST(
        normalise="unit",
        stream="block_input",
        condition_layers=(condition_layer,),
        behavior_layers=tuple(reference["behavior_layers"].tolist()),
        raw=True,
    )
    artifact = method.fit(subject, FitData(pairs=pairs, source=source, control=control))

    close = {"rtol": 1e-5, "atol": 1e-5}
    behavior = reference["behavior_dir_pca_pairwise"][reference["behavior_layers"]]
    torch.testing.assert_close(artifact["behavior"][0], behavior, **close)
    axis = reference["condition_dir_pca_center"][condition_layer]
    torch.testing.assert_close(artifact["condition"], axis, **close)
    seen = torch.cat([reference[f"condition_{kind}"][:, condition_layer - 1] for kind in ("pos", "neg")])
    cut = best_cut(similarity(seen, artifact["condition"])[None], torch.arange(2 * count) < count)
    assert artifact["threshold"].item() == pytest.approx(cut.threshold)
    assert artifact["f1"].item() == pytest.approx(cut.f1)
    assert [(request["completions"] is None, request["raw"]) for request in subject.requests] == [
        *[(False, False)] * 2,
        *[(True, True)] * 2,
    ]


CONFIGURATIONS = {
    "mean_larger": ("below", CAST(normalise="unit", stream="block_input")),
    "mean_smaller": ("above", CAST(normalise="unit", stream="block_input")),
    "last_larger": ("below", CAST(normalise="unit", stream="block_input", condition_read="last")),
    "mean_larger_notfirst": ("below", CAST(normalise="unit", stream="block_input", tokens="completion")),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_both_passes_agree_with_the_authors(reference: dict[str, Tensor], name: str) -> None:
    when, method = CONFIGURATIONS[name]
    layers, condition_layer = reference["behavior_layers"], reference["condition_layers"][0]
    count, num_layers, length, _ = reference["prompt_inputs"].shape
    artifact = {
        "behavior": reference["behavior_dir_pca_pairwise"][layers][None],
        "behavior_layers": layers,
        "condition": reference["condition_dir_pca_center"][condition_layer],
        "condition_layer": condition_layer,
        "threshold": reference[f"threshold_{name}"],
        "above": torch.tensor(when == "above"),
    }

    intervention = steered(method, artifact, [float(reference["behavior_strength"])] * count)
    read = reference["prompt_inputs"][:, condition_layer]
    similarities = similarity(read[:, -1] if "last" in name else read.mean(1), artifact["condition"])
    torch.testing.assert_close(similarities.double(), reference[f"sim_{name}"], rtol=1e-5, atol=1e-5)

    carry = {}
    prefill = where_of([length] * count)
    for where, given, expected in ((prefill, "prompt_inputs", "y"), (decode_step(prefill), "decode_inputs", "ydec")):
        for layer in range(num_layers):
            site, h = Site(layer, "block_input"), reference[given][:, layer]
            if site in intervention.probes:
                carry = intervention.probes[site].read(h, where.at(site), carry)
            if site in intervention.edits:
                h, carry = intervention.edits[site].apply(h, where.at(site), carry)
            torch.testing.assert_close(h, reference[f"{expected}_{name}"][:, layer], rtol=1e-5, atol=1e-5)
        assert torch.equal(carry["cast/decision"], reference[f"met_{name}"])


def test_search_agrees_with_the_authors(reference: dict[str, Tensor]) -> None:
    for first, end, low, high, step, layer, threshold, larger, f1 in reference["grid_result"].tolist():
        scores = reference["grid_sims"].T[int(first) : int(end)]
        cut = best_cut(scores, reference["grid_labels"] == 1, torch.arange(low, high, step, dtype=torch.float64))
        assert cut.row + first == layer
        assert cut.threshold == pytest.approx(threshold)
        assert cut.above == (larger == 0)
        assert cut.f1 == pytest.approx(f1)
