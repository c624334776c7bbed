"""LinEAS and E2E-DSAS: loss and edit by hand, source texts that reach their target, control texts that stay."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from toy_subject import where_of

from harness.subject.load import ModelConfig, load_model
from harness.subject.local import LocalSubject
from harness.subject.scorers import open_subject
from harness.training import Part, Training
from harness.types import FitData, Layout, Site
from methods.lineas import GatedAffine, LinEAS, MapLearner, wasserstein

LAYOUT = Layout(num_layers=4, width=8, num_heads=1, head_width=8)
SHORT = Training(epochs=25, batch_size=8, learning_rate=0.03, schedule="constant", clip=None)
TEXTS = {
    "source": tuple(f"a bad, dull and gloomy day number {i}" for i in range(8)),
    "target": tuple(f"SO SPLENDID, SUCH JOY! {i} {i}" for i in range(8)),
    "control": tuple(f"0{i} 1{i} 2{i} 3{i} 4{i}" for i in range(8)),
}
DATA = FitData(**TEXTS)


def test_distance_by_hand() -> None:
    # Unit 1: sorted (0, 2) against (1, 4): (1 + 4) / 2. Unit 2: the same values in another order.
    source, target = torch.tensor([[2.0, 5.0], [0.0, 7.0]]), torch.tensor([[1.0, 7.0], [4.0, 5.0]])
    assert wasserstein(source, target).item() == 1.25


@pytest.mark.parametrize(("gating", "factor"), [("none", 1.0), ("sigmoid", 0.75), ("relu", 2.0)])
def test_edit_by_hand(gating: str, factor: float) -> None:
    read = {"sigmoid": torch.log(torch.tensor(3.0)), "relu": torch.tensor(2.0)}.get(gating, torch.tensor(0.0))
    edit = GatedAffine(
        strength=torch.tensor([1.0, 0.5]),
        gain=torch.tensor([1.0, 0.0]),
        shift=torch.tensor([0.0, 10.0]),
        reader=torch.tensor([0.0, 1.0]),
        bias=read - 4.0,
        gating=gating,
    )
    edited, _ = edit.apply(torch.tensor([[[3.0, 4.0]], [[3.0, 4.0]]]), where_of([1, 1]), {})
    assert edited[0, 0].tolist() == pytest.approx([3.0 + 3.0 * factor, 4.0 + 10.0 * factor])
    assert edited[1, 0].tolist() == pytest.approx([3.0 + 1.5 * factor, 4.0 + 5.0 * factor])


@pytest.fixture(scope="module")
def tiny() -> LocalSubject:
    return open_subject(load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float32")))


def distance(subject: LocalSubject, method: LinEAS, artifact: dict, strength: float) -> float:
    """From steered source to target texts, over all layers."""
    sites = [Site(layer, method.stream) for layer in range(subject.layout.num_layers)]
    steered = method.intervention(artifact, {}, {"strength": torch.full((8,), strength)})
    source = subject.capture(TEXTS["source"], None, sites, tokens="after_first", intervention=steered, raw=True)
    target = subject.capture(TEXTS["target"], None, sites, tokens="after_first", raw=True)
    return float(sum(wasserstein(source[site], target[site]) for site in sites))


def change(subject: LocalSubject, method: LinEAS, artifact: dict, kind: str) -> float:
    """How far texts of a kind are moved at the last layer."""
    site = Site(subject.layout.num_layers - 1)
    steered = method.intervention(artifact, {}, {"strength": torch.ones(8)})
    before, after = (
        subject.capture(TEXTS[kind], None, [site], intervention=i, raw=True)[site] for i in (None, steered)
    )
    return float((after - before).norm(dim=-1).mean())


@pytest.fixture(scope="module")
def ungated(tiny: LocalSubject) -> dict[str, Tensor]:
    """What is learnt without a gate."""
    return LinEAS(training=SHORT).fit(tiny, DATA)


def test_source_texts_come_to_look_like_target_texts(tiny: LocalSubject, ungated: dict) -> None:
    method, artifact = LinEAS(training=SHORT), ungated
    full, none = distance(tiny, method, artifact, 1.0), distance(tiny, method, artifact, 0.0)
    assert full < 0.25 * none
    assert full < distance(tiny, method, artifact, 0.5) < none


@pytest.mark.parametrize("gating", ["sigmoid", "relu"])
def test_a_gate_spares_control_texts(gating: str, tiny: LocalSubject, ungated: dict) -> None:
    gated, plain = LinEAS(training=SHORT, gating=gating), LinEAS(training=SHORT)
    artifact = gated.fit(tiny, DATA)
    ratios = [
        change(tiny, method, learnt, "control") / change(tiny, method, learnt, "source")
        for method, learnt in ((gated, artifact), (plain, ungated))
    ]
    assert ratios[0] < 0.6 * ratios[1]
    assert distance(tiny, gated, artifact, 1.0) < 0.5 * distance(tiny, gated, artifact, 0.0)


def test_the_lasso_keeps_weak_units_at_the_identity(tiny: LocalSubject, ungated: dict) -> None:
    # By plain gradient steps, as in the paper: Adam moves every unit alike, however weak its gradient.
    few = Training(epochs=4, batch_size=8, learning_rate=1.0, optimizer="sgd", schedule="constant", clip=None)
    single, group = (LinEAS(training=few, lasso=lasso).fit(tiny, DATA)["shift"] for lasso in ((0.01, 0.0), (0.0, 9.0)))
    assert (ungated["shift"] != 0).all()
    assert 0.05 < (single == 0).float().mean() < 1.0
    assert (group == 0).all()


def test_the_loss_ignores_the_order_of_texts(tiny: LocalSubject) -> None:
    learner = MapLearner(tiny, LinEAS(), DATA, [Site(1, "mlp_norm")])
    first, second = (learner.loss(Part(rows, rows, 0, 0.0, 3)) for rows in ((0, 1, 2, 3), (3, 1, 0, 2)))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("gating", ["none", "sigmoid", "relu"])
def test_edits_keep_the_laws_and_null_is_the_identity(gating: str, edit_laws: Callable, apply_edits: Callable) -> None:
    generator = torch.Generator().manual_seed(0)
    artifact: dict[str, Tensor] = {name: torch.randn(2, 8, generator=generator) for name in ("gain", "shift", "reader")}
    artifact |= {"bias": torch.randn(2, generator=generator), "layers": torch.tensor([0, 3])}
    method = LinEAS(gating=gating)
    edit_laws(method.intervention(artifact, {}, {"strength": torch.tensor([1.0, 0.5, 0.0])}), LAYOUT)
    null = method.intervention(artifact, {}, {k: torch.tensor([v]) for k, v in method.null(LAYOUT).items()})
    h = torch.randn(1, 4, 8).bfloat16()
    assert torch.equal(apply_edits(null, h, Site(3, "mlp_norm")), h)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": (4,)}, "layers must be a whole number from 0 to 3, got 4"),
        ({"lasso": (0.1, -1.0)}, r"retain and lasso must be at least 0, got 1.0 and \[0.1, -1.0\]"),
        ({"training": Training(pass_tokens=100)}, "training.pass_tokens must be null"),
        ({"gating": "tanh"}, "gating must be one of none, sigmoid, relu, got 'tanh'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinEAS(**settings).check(LAYOUT)


def test_missing_texts_are_refused(tiny: LocalSubject) -> None:
    with pytest.raises(ValueError, match="got no target texts"):
        LinEAS().fit(tiny, FitData(source=TEXTS["source"]))
    with pytest.raises(ValueError, match="gating=sigmoid needs source, target, control texts, got no control texts"):
        LinEAS(gating="sigmoid").fit(tiny, FitData(source=TEXTS["source"], target=TEXTS["target"]))
