"""Activation transport: the maps by hand, the sequential fit, and values from the authors' code."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_subject import Block, ToySubject, run_blocks, where_of

from harness.types import FitData, Layout, Site, Where
from methods.activation_transport import ActivationTransport, TransportEdit, fit_line

LAYOUT = Layout(num_layers=4, width=3, num_heads=1, head_width=3)


@pytest.fixture
def act(golden: Callable[[str], Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(array) for name, array in golden("act").items()}


def whole(h_BTD: Tensor) -> Where:
    """A pass over these rows, without padding."""
    return where_of([h_BTD.shape[1]] * len(h_BTD))


def edit_of(line: dict[str, Tensor], strength: float, rows: int) -> TransportEdit:
    return TransportEdit(strength=torch.full((rows,), strength), **line)


def moved(values: list[float], line: dict[str, Tensor], strength: float = 1.0) -> list[float]:
    h_BTD = torch.tensor(values)[None, :, None]
    return edit_of(line, strength, 1).apply(h_BTD, where_of([len(values)]), {})[0].flatten().tolist()


def test_mean_map_by_hand() -> None:
    line = fit_line(torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [8.0]]), "mean", None)
    assert moved([-10.0, 0.0, 3.0], line) == [-5.0, 5.0, 8.0]
    assert moved([3.0], line, 0.5) == [5.5]


def test_gaussian_map_by_hand() -> None:
    line = fit_line(torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [8.0]]), "gaussian", None)
    assert moved([1.0, 2.0], line) == pytest.approx([6.0, 8.0])


def test_linear_map_pairs_sorted_samples_by_hand() -> None:
    # Sorted pairs (0, 1), (1, 2), (2, 6): slope 5/2, intercept 1/2.
    line = fit_line(torch.tensor([[2.0], [0.0], [1.0]]), torch.tensor([[1.0], [6.0], [2.0]]), "linear", (0.0, 100.0))
    assert moved([1.0, 1.5], line) == pytest.approx([3.0, 4.25])
    assert moved([1.0], line, 0.5) == pytest.approx([2.0])


def test_the_ends_of_the_support_stay() -> None:
    line = fit_line(torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [8.0]]), "linear", (0.0, 100.0))
    assert moved([-1.0, 0.0, 2.0, 3.0], line) == [-1.0, 0.0, 2.0, 3.0]
    assert moved([0.5], line) == [5.0]


def test_longer_sample_is_cut_for_the_linear_map() -> None:
    source, target = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[5.0], [6.0], [7.0], [1e6]])
    assert moved([1.0], fit_line(source, target, "linear", (0.0, 100.0))) == [6.0]


@pytest.mark.parametrize("kind", ["mean", "linear", "gaussian"])
def test_a_constant_unit_is_left_alone(kind: str) -> None:
    line = fit_line(torch.tensor([[3.0], [3.0], [3.0]]), torch.tensor([[4.0], [5.0], [6.0]]), kind, None)
    assert moved([2.0, 3.0, 7.0], line) == [2.0, 3.0, 7.0]


@pytest.mark.parametrize("kind", ["mean", "gaussian"])
def test_units_that_hardly_vary_are_left_alone(kind: str) -> None:
    spread = torch.tensor([-1.0, 0.0, 1.0])[:, None]
    target = 5.0 + spread
    assert moved([2.0], fit_line(0.9e-4 * spread, target, kind, None)) == [2.0]
    assert moved([0.0], fit_line(1.1e-4 * spread, target, kind, None)) == pytest.approx([5.0])


def test_bfloat16_states_are_moved_in_float32() -> None:
    generator = torch.Generator().manual_seed(2)
    line = fit_line(
        torch.randn(20, 64, generator=generator), 3 * torch.randn(20, 64, generator=generator), "linear", None
    )
    h = torch.randn(1, 9, 64, generator=generator).bfloat16()
    edit = edit_of(line, 0.7, 1)
    edited, _ = edit.apply(h, whole(h), {})
    assert torch.equal(edited, edit.apply(h.float(), whole(h), {})[0].bfloat16())


def identity_blocks(count: int) -> list[torch.nn.Identity]:
    return [torch.nn.Identity() for _ in range(count)]


def planted(shift: Tensor, width: int = 3) -> tuple[ToySubject, FitData]:
    generator = torch.Generator().manual_seed(0)
    source = {f"s{i}": torch.randn(2 + i % 3, width, generator=generator) for i in range(40)}
    target = {f"t{i}": torch.randn(2 + i % 3, width, generator=generator) + shift for i in range(40)}
    data = FitData(source=tuple(source), target=tuple(target))
    return ToySubject(source | target, identity_blocks(4)), data


def test_planted_shift_is_found_and_not_applied_twice() -> None:
    shift = torch.tensor([3.0, 0.0, -2.0])
    subject, data = planted(shift)
    method = ActivationTransport(kind="mean", support=None)
    gains = method.fit(subject, data)["block.shift"]
    assert torch.allclose(gains[0], shift, atol=0.4)
    # Both samples pass the first edit, so that their distance stays what it is at every further site.
    assert torch.allclose(gains[1], gains[0], atol=1e-5)
    assert torch.equal(gains, method.fit(subject, data)["block.shift"])


def test_a_huge_first_token_does_not_enter_the_means() -> None:
    subject, data = planted(torch.tensor([3.0, 0.0, -2.0]))
    plain = ActivationTransport(kind="mean").fit(subject, data)
    for states in subject.texts.values():
        states[0] = 1e4
    assert torch.equal(ActivationTransport(kind="mean").fit(subject, data)["block.shift"], plain["block.shift"])


def test_streams_of_one_block_are_fitted_in_flow_order(edit_laws: Callable[..., None]) -> None:
    subject, data = planted(torch.tensor([3.0, 0.0, -2.0]))
    method = ActivationTransport(kind="linear", streams=("block", "block_input"), layers=(2, 0))
    artifact = method.fit(subject, data)
    edits = method.intervention(artifact, {}, {"strength": torch.ones(2)}).edits
    assert set(edits) == {Site(n, stream) for n in (0, 2) for stream in ("block", "block_input")}
    unsteered = subject.capture(data.source, None, [Site(0)], tokens="after_first")[Site(0)]
    assert torch.allclose(edits[Site(0, "block_input")].high, unsteered.max(0).values)
    edit_laws(method.intervention(artifact, {}, {"strength": torch.tensor([0.0, 0.5, 1.0])}), subject.layout)
    # Later sites were fitted on states that earlier sites had moved.
    assert not torch.allclose(edits[Site(0)].high, unsteered.max(0).values)
    simultaneous = ActivationTransport(kind="linear", streams=("block", "block_input"), layers=(0, 2), sequential=False)
    assert torch.allclose(simultaneous.fit(subject, data)["block.high"][1], unsteered.max(0).values)


def test_each_row_has_its_own_strength_and_zero_is_the_identity() -> None:
    generator = torch.Generator().manual_seed(1)
    line = fit_line(torch.randn(9, 3, generator=generator), torch.randn(9, 3, generator=generator) + 2, "linear", None)
    h, where = torch.randn(3, 5, 3, generator=generator), where_of([5, 5, 5])
    out, _ = TransportEdit(strength=torch.tensor([0.0, 0.5, 1.0]), **line).apply(h, where, {})
    assert torch.equal(out[0], h[0])
    half = h[1] + (edit_of(line, 1.0, 3).apply(h, where, {})[0][1] - h[1]) / 2
    torch.testing.assert_close(out[1], half)
    assert (out[1:] != h[1:]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cubic"}, "kind must be one of mean, linear, gaussian, got 'cubic'"),
        ({"streams": ("output",)}, "streams must be some of block_input.*got \\['output'\\]"),
        ({"streams": ()}, "streams must be some of"),
        ({"support": (50.0, 20.0)}, "support must be two rising percentiles"),
        ({"layers": (4,)}, "layers must be a whole number from 0 to 3, got 4"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActivationTransport(**settings).check(LAYOUT)


def test_too_few_texts_are_refused() -> None:
    subject, data = planted(torch.ones(3))
    with pytest.raises(ValueError, match="at least 2 source and 2 target texts, got 40 and 1"):
        ActivationTransport().fit(subject, FitData(source=data.source, target=data.target[:1]))


@pytest.mark.parametrize(("kind", "label"), [("mean", "mean"), ("gaussian", "gauss"), ("linear", "linear")])
@pytest.mark.parametrize(("support", "suffix"), [(None, "q_all"), ((0, 100), "q_0_100"), ((5, 95), "q_5_95")])
def test_maps_agree_with_the_authors(
    act: dict[str, Tensor], kind: str, label: str, support: tuple[float, float] | None, suffix: str
) -> None:
    moving = act["labels"] == 1
    line = fit_line(act["responses"][moving], act["responses"][~moving], kind, support)
    for strength, name in zip(act["strengths"].tolist(), ("03", "10"), strict=True):
        out, _ = edit_of(line, strength, len(act["x"])).apply(act["x"], whole(act["x"]), {})
        torch.testing.assert_close(out, act[f"y_{label}_{suffix}_{name}"], rtol=1e-5, atol=1e-5)


def test_last_position_and_dead_units_agree_with_the_authors(act: dict[str, Tensor]) -> None:
    moving, where, strength = act["labels"] == 1, whole(act["x"]), float(act["strengths"][0])
    line = fit_line(act["responses"][moving], act["responses"][~moving], "linear", (0, 100))
    edit = TransportEdit(strength=torch.full((len(act["x"]),), strength), tokens="predicting", **line)
    out, _ = edit.apply(act["x"], where, {})
    torch.testing.assert_close(out, act["y_linear_q_0_100_03_lastpos"], rtol=1e-5, atol=1e-5)
    dead = act["dead_responses"]
    line = fit_line(dead[moving], dead[~moving], "mean", (0, 100))
    assert (line["gain"][act["dead_mask"]] == 0).all()
    out, _ = edit_of(line, strength, len(act["x"])).apply(act["x"], where, {})
    torch.testing.assert_close(out, act["dead_y_mean_q_0_100_03"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "support"), [("mean", None), ("linear", (0.0, 100.0))])
def test_sequential_fit_agrees_with_the_authors(
    act: dict[str, Tensor], kind: str, support: tuple[float, float] | None
) -> None:
    def block(index: int) -> Block:
        weight, bias = act["inc_W"][index], act["inc_b"][index]
        return lambda h: (h if index == 0 else h.tanh()) @ weight.T + bias

    tokens, labels = act["inc_tokens"], act["inc_labels"]
    texts = {str(index): states for index, states in enumerate(tokens)}
    subject = ToySubject(texts, [block(index) for index in range(len(act["inc_W"]))])
    source, target = (tuple(str(i) for i in range(len(tokens)) if labels[i] == label) for label in (1, 0))
    method = ActivationTransport(kind=kind, support=support, pooled="all")
    artifact = method.fit(subject, FitData(source=source, target=target))
    if kind == "mean":
        torch.testing.assert_close(artifact["block.shift"], act["inc_mean_shift"], rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(artifact["block.gain"] + 1, act["inc_linear_w"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(artifact["block.shift"], act["inc_linear_b"], rtol=1e-4, atol=1e-4)
    steered = method.intervention(artifact, {}, {"strength": torch.ones(len(tokens))})
    states, _ = run_blocks(tokens, subject.blocks, whole(tokens), steered)
    torch.testing.assert_close(states[Site(len(subject.blocks) - 1)], act[f"inc_{kind}_final"], rtol=1e-4, atol=1e-4)
