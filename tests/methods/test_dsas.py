"""DSAS: the gate by hand, a planted source direction, and any inner method behind it."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import hydra
import pytest
import torch
from hydra.utils import instantiate
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional
from toy_subject import Block, ToySubject, decode_step, run_blocks, where_of

from harness.directions import AddVector
from harness.types import Access, FitData, Gated, Layout, Method, Pair, Range, Site, Where
from methods.activation_transport import ActivationTransport
from methods.baseline import Baseline
from methods.cast import CAST
from methods.dsas import DSAS, LogisticGate, fit_classifier, fit_logistic
from methods.fusion import FusionSteering
from methods.single_vector import SingleVector

LAYOUT = Layout(num_layers=4, width=8, num_heads=1, head_width=8)
CAA = SingleVector(normalise="none", tokens="all")
STREAMS = ("block_input", "block")


def test_gated_edit_by_hand() -> None:
    gate = LogisticGate(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0]), torch.tensor(0.0))
    edit = Gated(AddVector(torch.tensor([[0.0, 8.0], [0.0, 8.0]])), gate)
    h = torch.tensor([[[math.log(3), 1.0]], [[-math.log(3), 1.0]]])
    # sigmoid(log 3) = 3/4 and sigmoid(-log 3) = 1/4, times the strengths 2 and 1, times a shift of 8.
    assert edit.apply(h, where_of([1, 1]), {})[0][:, 0, 1].tolist() == pytest.approx([13.0, 3.0])


def two_classes(gap: float, count: int = 60, width: int = 8, lone: int = 2) -> tuple[Tensor, Tensor]:
    h = torch.randn(count, width, generator=torch.Generator().manual_seed(0)) * torch.arange(1, width + 1)
    labels = torch.arange(count) < count // lone
    h[:, -1] += gap * labels
    return h, labels


def test_folded_classifier_equals_the_pipeline_that_it_stands_for() -> None:
    h, labels = two_classes(20.0, lone=3)
    classifier = fit_classifier(h, labels, components=3, folds=8)
    regression = LogisticRegression(class_weight="balanced", max_iter=1000)
    pipeline = make_pipeline(PCA(3, svd_solver="full"), StandardScaler(), regression).fit(h.double(), labels)
    expected = torch.from_numpy(pipeline.predict_proba(h.double())[:, 1]).float()
    torch.testing.assert_close((h @ classifier.weight + classifier.bias).sigmoid(), expected, atol=1e-4, rtol=1e-4)


def test_accuracy_is_balanced_and_held_out() -> None:
    h, labels = two_classes(0.0, count=80, width=40, lone=8)
    held_out = fit_classifier(h, labels, components=30, folds=8).accuracy
    training = fit_classifier(h, labels, components=30, folds=None).accuracy
    # Always answering "control" would be right for 70 of 80 texts; balanced accuracy calls that one half.
    assert held_out < 0.7
    assert training > held_out + 0.2
    assert fit_classifier(*two_classes(200.0), components=5, folds=8).accuracy == 1.0


def test_texts_without_any_difference_give_a_classifier_that_knows_nothing() -> None:
    classifier = fit_classifier(torch.ones(8, 3), torch.arange(8) < 4, components=5, folds=2)
    assert classifier.accuracy == 0.5
    assert (torch.ones(8, 3) @ classifier.weight + classifier.bias).sigmoid().tolist() == pytest.approx([0.5] * 8)


def planted() -> tuple[ToySubject, FitData]:
    """Only between the second and the last block does an axis (the first) tell source from control texts.

    Before, the kind is the product of the last two units, which no linear read-out sees.
    """
    generator = torch.Generator().manual_seed(0)
    texts = {}
    for kind in ("source", "control", "target", "good", "bad"):
        for i in range(24):
            states = torch.randn(3 + i % 2, 8, generator=generator)
            sign = 1.0 if i % 2 else -1.0
            states[:, 6], states[:, 7] = sign, sign if kind == "source" else -sign
            states[:, 1] += 4.0 * (kind in ("good", "target"))
            texts[f"{kind}{i}"] = states

    blocks: list[Block] = [torch.nn.Identity(), reveal, torch.nn.Identity(), lambda h: h * (torch.arange(8) > 0)]
    pairs = tuple(Pair(f"control{i}", f"good{i}", f"bad{i}") for i in range(24))
    source, control, target = (tuple(f"{kind}{i}" for i in range(24)) for kind in ("source", "control", "target"))
    return ToySubject(texts, blocks), FitData(pairs=pairs, source=source, target=target, control=control)


def reveal(h: Tensor) -> Tensor:
    return torch.cat([h[..., :1] + 5 * h[..., 6:7] * h[..., 7:], h[..., 1:6], torch.zeros_like(h[..., 6:])], -1)


def parameters(method: Method, rows: int, **changed: float) -> dict[str, Tensor]:
    chosen = method.defaults(LAYOUT) | {name.replace("__", "."): value for name, value in changed.items()}
    return {name: torch.full((rows,), float(value)) for name, value in chosen.items()}


def test_planted_source_direction_is_found_and_other_layers_are_left_alone() -> None:
    subject, data = planted()
    method = DSAS(inner=ActivationTransport(kind="mean", support=None), streams=STREAMS)
    artifact = method.fit(subject, data)

    assert artifact["block.accuracy"][1:3].tolist() == [1.0, 1.0]
    assert (artifact["block.accuracy"][[0, 3]] < 0.75).all()
    weight = artifact["block.weight"][1]
    assert weight[0] / weight.norm() > 0.95

    edits = method.intervention(artifact, {}, parameters(method, 1)).edits
    assert set(edits) == {Site(1), Site(2)}
    everywhere = replace(method, min_accuracy=0.0)
    assert set(everywhere.intervention(artifact, {}, parameters(method, 1)).edits) == {Site(n) for n in range(4)}

    again = method.fit(subject, data)
    assert all(torch.equal(artifact[key], again[key]) for key in artifact)


def test_source_texts_are_moved_and_control_texts_hardly() -> None:
    subject, data = planted()
    method = DSAS(inner=replace(CAA, layer=2), streams=STREAMS)
    artifact = method.fit(subject, data)
    moved = {}
    for kind, texts in (("source", data.source), ("control", data.control)):
        rows = {"group": torch.zeros(24, dtype=torch.long)}
        steered = method.intervention(artifact, rows, parameters(method, 24, inner__strength=1.0))
        before, after = (subject.capture(texts, None, [Site(2)], intervention=i)[Site(2)] for i in (None, steered))
        moved[kind] = float((after - before)[:, 1].mean())
    # The whole edit moves the second unit by 4.
    assert moved["source"] > 3.0
    assert abs(moved["control"]) < 0.5


def test_the_gate_reads_its_site_before_its_own_edit_and_after_earlier_ones() -> None:
    subject, data = planted()
    method = DSAS(inner=ActivationTransport(kind="mean", support=None), streams=STREAMS)
    artifact = method.fit(subject, data)
    steered = method.intervention(artifact, {}, parameters(method, 1))
    tokens = subject.texts["source0"][None]
    states, _ = run_blocks(tokens, subject.blocks, where_of([3]), steered)
    for layer, reaching in ((1, reveal(tokens)), (2, states[Site(1)])):
        likeness = (reaching @ artifact["block.weight"][layer] + artifact["block.bias"][layer]).sigmoid()[..., None]
        expected = reaching + likeness * artifact["inner.block.shift"][layer]
        torch.testing.assert_close(states[Site(layer)], expected)


def test_parameters_of_gate_and_inner_method_reach_both() -> None:
    method = DSAS(inner=replace(CAA, layer=Range(low=0, high=None, default=2, integer=True)), streams=STREAMS)
    offered = method.parameters(LAYOUT)
    assert list(offered) == ["strength", "inner.layer", "inner.strength"]
    assert offered["inner.layer"].high == 3
    assert method.null(LAYOUT) == {"strength": 0.0, "inner.layer": 2, "inner.strength": CAA.strength.default}
    subject, data = planted()
    artifact = method.fit(subject, data)
    group = {"group": torch.zeros(3, dtype=torch.long)}
    free = parameters(method, 3) | {"inner.layer": torch.tensor([1.0, 2.0, 3.0])}
    free |= {"strength": torch.tensor([1.0, 0.0, 1.0])}
    edits = method.intervention(artifact, group, free).edits
    # Layer 3 has no accurate gate, so the row that asks for it stays un-steered.
    assert set(edits) == {Site(1), Site(2)}
    where, h = where_of([4, 4, 4]), torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(2))
    changed = {n: (edits[Site(n)].apply(h, where, {})[0] != h).any(-1).any(-1).tolist() for n in (1, 2)}
    assert changed == {1: [True, False, False], 2: [False, False, False]}


def test_what_the_inner_method_needs_is_passed_on() -> None:
    assert DSAS(inner=CAA).requires == {"pairs", "texts"}
    assert DSAS(inner=CAA).access == {Access.PAIRS, Access.TEXTS}
    assert DSAS(inner=ActivationTransport()).requires == {"texts"}
    assert DSAS(inner=replace(CAA, instruction="Be kind.")).instruction == "Be kind."
    assert DSAS(inner=CAA).version == 1000 + CAA.version


def test_laws_of_the_gated_edits(edit_laws: Callable[..., None]) -> None:
    subject, data = planted()
    method = DSAS(inner=ActivationTransport(kind="linear"), streams=STREAMS)
    artifact = method.fit(subject, data)
    steered = method.intervention(artifact, {}, parameters(method, 3) | {"strength": torch.tensor([0.0, 0.7, 1.5])})
    edit_laws(steered, LAYOUT)
    h, where = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(2)), where_of([4, 2, 3])
    null = method.intervention(artifact, {}, parameters(method, 3, **method.null(LAYOUT)))
    states, _ = run_blocks(h, [torch.nn.Identity()] * 4, where, null)
    assert torch.equal(states[Site(3)], h)


def test_probes_and_decisions_of_the_inner_method_are_kept() -> None:
    subject, data = planted()
    method = DSAS(inner=CAST(condition_layers=(1,), behavior_layers=(2,)), streams=STREAMS)
    artifact = method.fit(subject, data)
    group = {"group": torch.zeros(2, dtype=torch.long)}
    steered = method.intervention(artifact, group, parameters(method, 2, inner__strength=1.0))
    assert set(steered.probes) == {Site(1)}

    tokens, where = torch.stack([subject.texts["source0"], subject.texts["control0"]]), where_of([3, 3])
    unsteered = reveal(tokens)
    states, carry = run_blocks(tokens, subject.blocks, where, steered)
    assert carry["cast/decision"].tolist() == [True, False]
    assert torch.equal(states[Site(2)][1], unsteered[1])
    assert not torch.equal(states[Site(2)][0], unsteered[0])

    decoded, _ = run_blocks(tokens[:, :1], subject.blocks, decode_step(where), steered, carry)
    assert torch.equal(decoded[Site(2)][1], unsteered[1, :1])


def test_fusion_behind_a_gate_keeps_its_prompt_mean_while_rows_leave() -> None:
    subject, data = planted()
    method = DSAS(inner=FusionSteering(segments={"all": 0.5}), streams=STREAMS)
    artifact = method.fit(subject, data)
    reference = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(4))
    intervention = method.intervention(artifact, {"reference": reference}, parameters(method, 3))

    h, where = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(5)), where_of([4, 2, 3])
    _, carry = run_blocks(h, [torch.nn.Identity()] * 4, where, intervention)
    mean = where.mean(h)
    shift = 0.5 * (reference[:, 1] - mean)

    token, step = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(6)), decode_step(where)
    likeness = (token @ artifact["block.weight"][1] + artifact["block.bias"][1]).sigmoid()[..., None]
    whole, _ = run_blocks(token, [torch.nn.Identity()] * 4, step, intervention, carry)
    torch.testing.assert_close(whole[Site(1)], token + likeness * shift[:, None])

    rows = torch.tensor([2, 0])
    fewer = Where(step.positions[rows], None, step.prompt_lengths[rows], False)
    kept = {name: value[rows] for name, value in carry.items()}
    taken, _ = run_blocks(token[rows], [torch.nn.Identity()] * 4, fewer, intervention.take(rows), kept)
    assert torch.equal(taken[Site(3)], whole[Site(3)][rows])


@pytest.mark.parametrize("inner", ["caa", "segmented", "linear_act", "cast"])
def test_the_command_line_puts_any_method_behind_the_gate(inner: str) -> None:
    with hydra.initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        config = hydra.compose("config", ["method=dsas", f"method@method.inner={inner}", "method.inner.instruction=Hi"])
    method = instantiate(config.method, _convert_="all")
    method.check(Layout(num_layers=30, width=576, num_heads=9, head_width=64))
    assert method.instruction == "Hi"
    assert {name.partition(".")[0] for name in method.defaults(LAYOUT)} == {"strength", "inner"}


def test_no_accurate_gate_is_an_error_that_names_the_best() -> None:
    subject, data = planted()
    blind = ToySubject(subject.texts, subject.blocks[:1])
    with pytest.raises(ValueError, match=r"must reach 0\.75, got at most 0\.\d\d \(at 0\.block_input\)"):
        DSAS(inner=ActivationTransport(), streams=STREAMS).fit(blind, data)


def test_an_edit_in_a_stream_without_gates_is_an_error() -> None:
    subject, data = planted()
    method = DSAS(inner=ActivationTransport(kind="mean", streams=("block_input",)), streams=("block",))
    with pytest.raises(ValueError, match="streams must name block_input, which the inner method edits"):
        method.intervention(method.fit(subject, data), {}, parameters(method, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner": Baseline()}, "inner method must steer, got Baseline"),
        ({"components": 0}, "components must be at least 1"),
        ({"min_accuracy": 1.5}, r"min_accuracy must be between 0 and 1, got 1\.5"),
        ({"accuracy": "best"}, "accuracy must be one of cross_validated, training"),
        ({"inner": replace(CAA, layer=9)}, "layer must be a whole number from 0 to 3, got 9"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DSAS(**({"inner": CAA} | settings)).check(LAYOUT)


def test_missing_control_texts_are_refused() -> None:
    subject, data = planted()
    with pytest.raises(ValueError, match="at least 2 source and 2 control texts, got 24 and 0"):
        DSAS(inner=CAA).fit(subject, FitData(pairs=data.pairs, source=data.source))


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
