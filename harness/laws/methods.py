"""The laws of all methods. Each takes a `Lab` and raises AssertionError if the method breaks it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.laws.lab import Lab, cut, early_stops, expected, ids, workbench_of
from harness.laws.measure import FILLER, assert_close, hooks_of, logprobs_of, same
from harness.subject.passes import Text, loglikelihood, next_token_logprobs
from harness.subject.tally import Tally
from harness.training import Training
from harness.types import Intervention
from harness.workbench import Request
from harness.workspace import Workspace


def is_frozen_data(lab: Lab) -> None:
    """A method is a frozen dataclass: it keeps nothing between calls, and parameters are the fields it declares."""
    method = lab.job.method
    with expected(dataclasses.FrozenInstanceError):
        method.instruction = "other"  # pyright: ignore[reportAttributeAccessIssue]
    assert set(vars(method)) == {item.name for item in dataclasses.fields(method)}
    assert method == type(method)(**{f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.init})


def parameters_and_defaults_fit(lab: Lab) -> None:
    """Ranges can be searched, and the defaults name exactly the parameters."""
    method = lab.job.method
    known, defaults = method.parameters(lab.layout), method.defaults(lab.layout)
    assert known.keys() == defaults.keys()
    for name, value in known.items():
        if not isinstance(value, float | int):
            value.check(name)
            assert value.low <= defaults[name] <= value.high  # pyright: ignore[reportOperatorIssue]
    null = method.null(lab.layout)
    assert null is None or null.keys() == known.keys()


def fit_is_deterministic(lab: Lab) -> None:
    """A fit on a fresh bench gives the same tensors, bit for bit, whether or not its texts were read before."""
    lab.bench.subject.forget_captures()
    assert same(workbench_of(lab.job).fit(), lab.bench.artifact), "when nothing was read before"
    assert same(workbench_of(lab.job).fit(), lab.bench.artifact), "when everything was read before"


def fits_without_test_questions(lab: Lab) -> None:
    """Nothing that a method fits on holds a question of the test or dev split."""
    data = lab.job.task.fit_data(lab.job.method.requires)
    asked = {example.question.strip() for split in ("test", "dev") for example in lab.job.task.examples(split)}
    read = {pair.prompt for pair in data.pairs} | {prompt for prompt, _, _ in data.labelled}
    read |= {*data.source, *data.target, *data.control} | {shown.prompt for shown in data.demonstrations}
    assert not asked & {text.strip() for text in read}


def artifact_survives_save_and_load(lab: Lab, folder: Path) -> None:
    """Fitted tensors come back from safetensors, and steer as before."""
    artifact = lab.bench.artifact
    assert all(isinstance(value, Tensor) for value in artifact.values())
    save_file({name: value.contiguous() for name, value in artifact.items()}, folder / "artifact.safetensors")
    loaded = load_file(folder / "artifact.safetensors")
    assert same(artifact, loaded)
    again = workbench_of(lab.job)
    again.adopt(loaded)
    assert torch.equal(logprobs_of(lab, again.intervention(lab.requests)), logprobs_of(lab, lab.intervention()))


def trains(options: Any) -> bool:
    """Whether a method has options, its own or those of one of its options, that say how something is trained."""
    values = [getattr(options, item.name) for item in dataclasses.fields(options)]
    nested = [value for value in values if dataclasses.is_dataclass(value) and not isinstance(value, type)]
    return any(isinstance(value, Training) or trains(value) for value in nested)


def interrupted_training_ends_the_same(lab: Lab, folder: Path) -> list[str]:
    """A fit that is cut off five times, and begun again, goes on from its checkpoints and ends with equal tensors.

    A fit may train several things, one after the other: each of them is cut off five times.

    Returns:
        What was trained: nothing, where a file takes the place of what would be.
    """
    job = dataclasses.replace(lab.job, method=_with_longer_training(lab.job.method))
    titles: list[str] = []
    whole = workbench_of(job).fit(Workspace(None, progress=partial(_note_the_title, titles)))

    for number, title in enumerate(titles):
        checkpoints, done_before = folder / str(number), list[int]()
        for _ in range(5):
            with expected(_CutOffError):
                cut_off = partial(_cut_off_in_the_second_step, title, done_before)
                workbench_of(job).fit(Workspace(checkpoints, save_every=0.0, progress=cut_off))
        assert done_before == [0, 1, 2, 3, 4], f"{title} begins anew in place of going on"
        assert same(workbench_of(job).fit(Workspace(checkpoints, save_every=0.0)), whole)
    return titles


def _with_longer_training(options: Any) -> Any:
    """The same options with eight epochs wherever something is trained, so that there is time for five cuts."""
    longer: dict[str, Any] = {}
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        if isinstance(value, Training):
            longer[item.name] = dataclasses.replace(value, epochs=8)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type) and trains(value):
            longer[item.name] = _with_longer_training(value)
    return dataclasses.replace(options, **longer)


class _CutOffError(Exception):
    """Ends a training as a kill would, but for the process."""


@contextmanager
def _note_the_title(titles: list[str], title: str, _total: int) -> Iterator[Callable[[int], None]]:
    titles.append(title)
    yield lambda _steps: None


@contextmanager
def _cut_off_in_the_second_step(
    chosen: str, done_before: list[int], title: str, _total: int
) -> Iterator[Callable[[int], None]]:
    calls = itertools.count(1)

    def advance(steps: int) -> None:
        # The first call tells what was done before. After the third a checkpoint would be written: that step is lost.
        call = next(calls)
        if title == chosen and call == 1:
            done_before.append(steps)
        if title == chosen and call == 3:
            raise _CutOffError

    yield advance


def conditions_are_each_examples_own(lab: Lab) -> None:
    """What is looked up for an example has one row for it, and does not depend on the others in the batch."""
    method, bench = lab.job.method, lab.bench
    examples = lab.job.task.examples("test")
    together = method.condition(bench.subject, bench.artifact, examples)
    for row, example in enumerate(examples):
        alone = method.condition(bench.subject, bench.artifact, [example])
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            assert len(value) == 1
            assert len(together[name]) == len(examples)
            torch.testing.assert_close(value[0], together[name][row], rtol=1e-5, atol=1e-6)


def identity_at_null(lab: Lab) -> None:
    """At the parameters that mean "nothing", logits and texts are those of the un-steered model."""
    null = lab.job.method.null(lab.layout)
    if null is None:
        assert not lab.bench.steers or lab.job.method.parameters(lab.layout), "without a null there must be parameters"
        return
    requests = [dataclasses.replace(request, parameters=null) for request in lab.requests]
    nothing = lab.bench.intervention(requests)
    torch.testing.assert_close(logprobs_of(lab, nothing), logprobs_of(lab, Intervention()), rtol=0, atol=1e-6)
    assert ids(lab.decode(nothing)) == ids(lab.decode(Intervention()))


def batches_and_cache_change_nothing(lab: Lab) -> None:
    """Token ids are the same alone, in a batch, with rows leaving and joining, and with and without cache."""
    steered, units = lab.intervention(), lab.units()
    free = ids(lab.decode(steered, stop_ids=frozenset()))
    stops = early_stops(free)
    if steered.groups is None:
        expected = [cut(row, stops) for row in free]
        kinds = (steered, dataclasses.replace(steered, uses_cache=False))
    else:  # rows whose neighbour has ended go on as others, and nobody can compute that neighbour again
        expected, kinds = ids(lab.decode(steered, stop_ids=stops)), (steered,)
    for intervention in kinds:
        assert ids(lab.decode(intervention, stop_ids=stops)) == expected
        assert ids(lab.decode(intervention, stop_ids=stops, at_once=1 + max(map(len, units)))) == expected
    for members in units:
        if steered.groups is None or len(members) > 1:
            alone = lab.decode(lab.alone(members), rows=members, stop_ids=stops)
            assert ids(alone) == [expected[row] for row in members]


def likelihoods_do_not_depend_on_the_batch(lab: Lab) -> None:
    """The log-likelihood of a given completion is the same alone and among others."""
    network, tally = lab.bench.subject.network, lab.bench.subject.tally
    texts = [Text(prompt, FILLER[: 1 + row % 4]) for row, prompt in enumerate(lab.prompts())]
    if lab.job.method.couples_rows:
        with expected(ValueError, "has no likelihood of a text on its own"):
            loglikelihood(network, texts, lab.intervention(), tally)
        return
    with torch.no_grad():
        together = loglikelihood(network, texts, lab.intervention(), tally)
        for row, request in enumerate(lab.requests):
            alone = loglikelihood(network, [texts[row]], lab.bench.intervention([request]), tally)
            assert_close(alone[0], together[row])


def options_of_a_row_share_its_pass(lab: Lab) -> None:
    """Options that differ in their last token score as texts of their own do, for half of the work if edits allow."""
    network, intervention = lab.bench.subject.network, lab.intervention()
    if intervention.groups is not None:
        return
    options = [(FILLER[0], FILLER[1]), (FILLER[0], FILLER[2])]
    texts = [Text(prompt, option) for prompt in lab.prompts() for option in options]
    owners = [row for row in range(len(lab.requests)) for _ in options]
    shared, single = Tally(), Tally()
    with torch.no_grad():
        together = loglikelihood(network, texts, intervention, shared, owners)
        for text, owner, logprobs in zip(texts, owners, together, strict=True):
            (alone,) = loglikelihood(network, [text], intervention, single, [owner])
            assert_close(alone, logprobs)
    if intervention.uses_cache and intervention.edits:
        assert shared.forward_tokens - shared.padding_tokens == single.forward_tokens / 2


def hooks_are_gone_afterwards(lab: Lab) -> None:
    """Fitting, looking up, decoding and scoring leave the model as it was."""
    network = lab.bench.subject.network
    before = next_token_logprobs(network, lab.prompts(), Intervention(), lab.bench.subject.tally)
    workbench_of(lab.job).fit()
    lab.decode(lab.intervention())
    assert hooks_of(network) == 0
    assert torch.equal(next_token_logprobs(network, lab.prompts(), Intervention(), lab.bench.subject.tally), before)


def runs_whatever_the_task_asks(lab: Lab) -> None:
    """The bench answers every request in order, steered and un-steered ones mixed."""
    requests = [*lab.requests, *(Request(request.example, {}) for request in lab.requests[:2])]
    generations = lab.bench.run(requests)
    assert [generation.example_id for generation in generations] == [request.example.id for request in requests]
    for request, generation in zip(requests, generations, strict=True):
        expected = 0 if lab.job.task.kind == "generate" else len(request.example.choices)
        assert len(generation.choice_logprobs) == expected
        assert all(math.isfinite(value) and value <= 0 for value in generation.choice_logprobs)


GENERAL = (
    is_frozen_data,
    parameters_and_defaults_fit,
    fit_is_deterministic,
    fits_without_test_questions,
    conditions_are_each_examples_own,
    identity_at_null,
    batches_and_cache_change_nothing,
    likelihoods_do_not_depend_on_the_batch,
    options_of_a_row_share_its_pass,
    hooks_are_gone_afterwards,
    runs_whatever_the_task_asks,
)
"""Laws of every method."""
