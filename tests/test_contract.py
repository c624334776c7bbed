"""Five probes that break naive contracts, each held against whole sequences steered by hand, one row at a time.

All of it in float64 on the tiny Llama, through the real bench and decoder, with rows that leave and join.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from laws.plain_model import Edit, PlainModel
from torch import Tensor
from torch.nn import functional

from harness.directions import encoded_names
from harness.laws.lab import NEW_TOKENS, Lab, cut, early_stops, ids, job_for, job_of, lab_for, one_thread
from harness.types import Intervention, Parameters
from harness.workbench import Request
from methods.dsas import DSAS

AT_ONCE = (1, 2, 64)
"""Rows in flight: alone, leaving and joining, all together."""
NUM_LAYERS = 4


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def plain() -> PlainModel:
    return PlainModel()


def check_against(plain: PlainModel, lab: Lab, edits: Sequence[dict[int, Edit]]) -> None:
    """The decoder writes what the plain model writes with these edits, however rows are batched."""
    prompts = lab.prompts()
    free = [plain.greedy(prompt, by, NEW_TOKENS) for prompt, by in zip(prompts, edits, strict=True)]
    unsteered = [plain.greedy(prompt, {}, NEW_TOKENS) for prompt in prompts]
    assert free != unsteered, "steering by hand must change something"
    stops = early_stops(free)
    expected = [cut(row, stops) for row in free]
    assert len({len(row) for row in expected}) > 1, "rows of one length never leave early"
    for rows in AT_ONCE:
        assert ids(lab.decode(lab.intervention(), at_once=rows, stop_ids=stops)) == expected
    assert ids(lab.decode(Intervention(), stop_ids=frozenset())) == unsteered


def reference_of(plain: PlainModel, lab: Lab, row: int) -> list[Tensor]:
    """Mean block outputs over the gold's tokens, in the row's own prompt."""
    prompt, answer = lab.prompts()[row], lab.bench.subject.encode(lab.requests[row].example.answer)
    return [state[len(prompt) :].mean(0) for state in plain.states([*prompt, *answer])]


def moved_to(reference: Tensor, strength: float, prompt_length: int) -> Edit:
    return lambda h: h + strength * (reference - h[:prompt_length].mean(0))


def test_fusion_remembers_each_prompts_mean_while_rows_leave_and_join(plain: PlainModel) -> None:
    lab = lab_for("segmented")
    segments = ("k_early", "k_early", "k_middle", "k_late")
    edits = []
    for row, request in enumerate(lab.requests):
        reference, length = reference_of(plain, lab, row), len(lab.prompts()[row])
        # Each layer's mean is taken under the steering of the layers below it: the edits run in one pass.
        edits.append(
            {at: moved_to(reference[at], request.parameters[name], length) for at, name in enumerate(segments)}
        )
    check_against(plain, lab, edits)


def test_the_sequence_mean_is_taken_anew_at_every_step(plain: PlainModel) -> None:
    lab = Lab.of(job_for("full_layer", "method.mean=sequence"))
    edits = []
    for row, request in enumerate(lab.requests):
        reference, strength = reference_of(plain, lab, row), request.parameters["k_all"]
        edits.append({at: lambda h, to=reference[at], k=strength: h + k * (to - h.mean(0)) for at in range(NUM_LAYERS)})
    check_against(plain, lab, edits)


def condition_of(plain: PlainModel, prompt: Sequence[int], layer: int, direction: Tensor) -> float:
    """Cosine between the mean state of a prompt and the tanh of its projection on a direction."""
    h = plain.states(prompt)[layer].mean(0)
    projection = (h @ direction) / (direction @ direction) * direction
    return float(functional.cosine_similarity(h, projection.tanh(), dim=0))


@pytest.mark.parametrize("above", [True, False])
def test_cast_reads_one_layer_and_steers_others(plain: PlainModel, above: bool) -> None:
    lab = Lab.of(job_for("cast"), artifact={})
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(lab.layout.width, generator=generator)
    behavior = 3 * torch.randn(1, 2, lab.layout.width, generator=generator)
    conditions = [condition_of(plain, prompt, 0, direction.double()) for prompt in lab.prompts()]

    ordered = sorted(set(conditions))
    threshold = (ordered[2] + ordered[3]) / 2
    lab.bench.adopt(
        {
            "behavior": behavior,
            "behavior_layers": torch.tensor([2, 3]),
            "groups": encoded_names([""]),
            "condition": direction,
            "condition_layer": torch.tensor(0),
            "threshold": torch.tensor(threshold),
            "above": torch.tensor(above),
            "f1": torch.tensor(1.0),
        }
    )

    met = [value > threshold if above else value < threshold for value in conditions]
    assert any(met)
    assert not all(met)
    vectors = behavior[0].double()
    edits: list[dict[int, Edit]] = []
    for request, steered in zip(lab.requests, met, strict=True):
        added = [request.parameters["strength"] * vector for vector in vectors]
        edits.append({2: lambda h, v=added[0]: h + v, 3: lambda h, v=added[1]: h + v} if steered else {})
    check_against(plain, lab, edits)


def test_a_gate_goes_around_fusion(plain: PlainModel) -> None:
    lab = Lab.of(job_for("dsas", "method@method.inner=full_layer", "model.ranges.full=[0.1,0.6]"))
    method, artifact = lab.job.method, lab.bench.artifact
    assert isinstance(method, DSAS)
    open_layers = [at for at in range(NUM_LAYERS) if artifact["block.accuracy"][at] >= method.min_accuracy]
    assert open_layers

    def gated(inner: Edit, layer: int, strength: float) -> Edit:
        weight, bias = artifact["block.weight"][layer].double(), artifact["block.bias"][layer].double()
        return lambda h: h + strength * torch.sigmoid(h @ weight + bias)[:, None] * (inner(h) - h)

    edits = []
    for row, request in enumerate(lab.requests):
        reference, length = reference_of(plain, lab, row), len(lab.prompts()[row])
        k, strength = request.parameters["inner.k_all"], request.parameters["strength"]
        edits.append({at: gated(moved_to(reference[at], k, length), at, strength) for at in open_layers})
    check_against(plain, lab, edits)


def test_a_transport_map_is_fitted_layer_by_layer(plain: PlainModel) -> None:
    lab = Lab.of(job_for("linear_act", "task.train_size=6"))
    subject, data = lab.bench.subject, lab.job.task.fit_data(lab.job.method.requires)
    source, target = (
        [subject.encode(subject.render(text, raw=True)) for text in texts] for texts in (data.source, data.target)
    )

    carried: dict[int, Edit] = {}
    lines = []
    for layer in range(NUM_LAYERS):
        lines.append(line_through(*(pooled(plain, texts, layer, carried) for texts in (source, target))))
        carried[layer] = transported(*lines[layer], strength=1.0)

    fitted = [
        [lab.bench.artifact[f"block.{name}"][layer].double() for name in ("gain", "shift", "low", "high")]
        for layer in range(NUM_LAYERS)
    ]
    for lines_fitted, expected in zip(fitted, lines, strict=True):
        torch.testing.assert_close(lines_fitted, list(expected), rtol=1e-3, atol=1e-4)

    edits = [
        {at: transported(*line, strength=request.parameters["strength"]) for at, line in enumerate(fitted)}
        for request in lab.requests
    ]
    check_against(plain, lab, edits)


def pooled(plain: PlainModel, texts: Sequence[Sequence[int]], layer: int, edits: dict[int, Edit]) -> Tensor:
    """Mean state of each text's tokens after the first."""
    return torch.stack([plain.states(text, edits)[layer][1:].mean(0) for text in texts])


def line_through(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Least squares through the sorted samples of each unit, less the identity; bounds of the source."""
    count = min(len(source), len(target))
    x, y = np.sort(source[:count].numpy(), 0), np.sort(target[:count].numpy(), 0)
    slope, offset = np.array([np.polyfit(x[:, unit], y[:, unit], 1) for unit in range(x.shape[1])]).T
    return torch.tensor(slope - 1), torch.tensor(offset), source.amin(0), source.amax(0)


def transported(gain: Tensor, shift: Tensor, low: Tensor, high: Tensor, strength: float) -> Edit:
    return lambda h: torch.where((h > low) & (h < high), h + strength * (gain * h + shift), h)


def test_letters_are_as_likely_as_teacher_forcing_says(plain: PlainModel) -> None:
    task = ["task=behaviors", "task.train_size=24", "task.limit=6"]
    job = job_of(["method=caa", "model=tiny", "model.dtype=float64", "tracking=none", *task])
    lab = Lab.of(job)
    encode, vectors = lab.bench.subject.encode, lab.bench.artifact["vector"].double()
    groups = job.method.condition(lab.bench.subject, lab.bench.artifact, [r.example for r in lab.requests])["group"]

    moved = 0
    for row, generation in enumerate(lab.bench.run(lab.requests)):
        request, prompt = lab.requests[row], lab.prompts()[row]
        layer = int(request.parameters["layer"])
        edit = after_prompt(len(prompt), request.parameters["strength"] * vectors[groups[row], layer])
        for choice, logprob in zip(request.example.choices, generation.choice_logprobs, strict=True):
            assert choice.strip("()") in "AB"
            expected = plain.loglikelihood(prompt, encode(choice), {layer: edit})
            assert logprob == pytest.approx(expected, abs=1e-5)
            moved += abs(expected - plain.loglikelihood(prompt, encode(choice), {})) > 1e-3
    assert moved >= len(lab.requests)


def after_prompt(prompt_length: int, vector: Tensor) -> Edit:
    """The vector on the prompt's last token and on all that follow."""
    return lambda h: torch.cat([h[: prompt_length - 1], h[prompt_length - 1 :] + vector])


def test_steered_and_unsteered_rows_share_a_call(plain: PlainModel) -> None:
    lab = lab_for("segmented")
    nothing: Parameters = {}
    mixed = [Request(r.example, r.parameters if i % 2 else nothing) for i, r in enumerate(lab.requests)]
    steered, bare = lab.bench.run(lab.requests), lab.bench.run([Request(r.example, nothing) for r in lab.requests])
    expected = [(steered if i % 2 else bare)[i].token_ids for i in range(len(mixed))]
    assert [generation.token_ids for generation in lab.bench.run(mixed)] == expected
    written = plain.greedy(lab.prompts()[0], {}, lab.job.task.max_new_tokens)
    assert bare[0].token_ids == cut(written, lab.bench.subject.network.stop_ids)
