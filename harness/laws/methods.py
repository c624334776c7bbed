"""The laws of methods. Each takes a `Lab` and raises AssertionError if the method breaks it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.laws.lab import Lab, cut, early_stops, expected, ids, row_index, workbench_of
from harness.laws.states import Rows, Side, chosen, sites_of
from harness.laws.toy_block import ToyBlock
from harness.steering import STORED_STREAMS
from harness.subject.hooks import Steering
from harness.subject.network import Network
from harness.subject.passes import Text, loglikelihood, next_token_logprobs
from harness.subject.sampling import Sampling
from harness.subject.sites import FAMILIES, Blocks
from harness.subject.tally import Tally
from harness.types import Artifact, Carry, Edit, Intervention, Site, Where
from harness.workbench import Request

FILLER = (30, 41, 52, 63, 74)
"""Tokens that stand for a completion."""
SIDES: tuple[Side, ...] = ("left", "right")


def rows_of(lab: Lab, intervention: Intervention) -> Rows:
    """States of every row's prompt with a completion of a length of its own, at all sites of the intervention.

    Rows that are steered together are in step: theirs are of one length, and differ in what they say.
    """
    prompts, units = lab.prompts(), lab.units()
    texts = [list(prompt) for prompt in prompts]
    for number, members in enumerate(units):
        for place, row in enumerate(members):
            texts[row] += [token + place for token in FILLER[: 2 + number % 3]]
    lengths = [len(prompt) for prompt in prompts]
    return Rows.of(lab.bench.subject.network, sites_of(intervention), texts, lengths)


def hooks_of(network: Network) -> int:
    """Hooks on any part of the model."""
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in network.model.modules())


def same(first: Artifact, second: Artifact) -> bool:
    """Whether two artifacts hold the same tensors, bit for bit."""
    return first.keys() == second.keys() and all(
        value.dtype == second[name].dtype and torch.equal(value, second[name]) for name, value in first.items()
    )


def _assert_close(actual: Tensor, due: Tensor) -> None:
    """Equal within what float32 holds: methods may keep what they look up in it, also for a model in float64."""
    torch.testing.assert_close(actual, due, rtol=1e-5, atol=1e-5)


# What holds for every method.


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
    """A second fit on a fresh bench gives the same tensors, bit for bit."""
    assert same(workbench_of(lab.job).fit(), lab.bench.artifact)


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
    assert torch.equal(_logprobs(lab, again.intervention(lab.requests)), _logprobs(lab, lab.intervention()))


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
    torch.testing.assert_close(_logprobs(lab, nothing), _logprobs(lab, Intervention()), rtol=0, atol=1e-6)
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
            _assert_close(alone[0], together[row])


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
            _assert_close(alone, logprobs)
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


# What holds for every method that changes hidden states.


def steering_changes_the_model(lab: Lab) -> None:
    """Away from null, predictions move: without this, every other law could hold for nothing."""
    moved = (_logprobs(lab, lab.intervention()) - _logprobs(lab, Intervention())).abs().amax(1)
    assert int((moved > 1e-4).sum()) >= 2


def padding_is_left_alone(lab: Lab) -> None:
    """Padding on either side comes out as it went in."""
    intervention = lab.intervention()
    rows = rows_of(lab, intervention)
    for side in SIDES:
        padded = rows.prefill(side)
        after, _ = padded.through(intervention)
        assert padded.where.real is not None
        for site, h in after.items():
            assert bool((h[~padded.where.real] == rows.prefill(side).states[site][~padded.where.real]).all()), site


def padding_does_not_matter(lab: Lab) -> None:
    """Real tokens are edited as if the row were alone, wherever padding stands and whatever it holds."""
    intervention = lab.intervention()
    rows = rows_of(lab, intervention)
    for side in SIDES:
        padded = rows.prefill(side)
        together = padded.real(padded.through(intervention)[0])
        for members in lab.units():
            alone = rows.take(members).prefill(side)
            states_alone = alone.real(alone.through(intervention.take(row_index(members)))[0])
            for site, states in states_alone.items():
                for row, h in zip(members, states, strict=True):
                    _assert_close(together[site][row], h)


def edits_are_pure(lab: Lab) -> None:
    """Neither the states nor the carry nor the fitted tensors that an edit is given are written to."""
    intervention = lab.intervention()
    kept = {name: value.clone() for name, value in lab.bench.artifact.items()}
    rows = rows_of(lab, intervention)
    started = rows.without_last().prefill("right")
    _, carry = started.through(intervention)
    copy = {key: value.clone() for key, value in carry.items()}
    _, later = rows.last().through(intervention, carry)
    assert later is not None
    for name, made in (("prompt", rows.without_last().prefill("right")), ("step", rows.last())):
        given = {site: h.clone() for site, h in made.states.items()}
        after, _ = made.through(intervention, carry if name == "step" else {})
        for site, h in made.states.items():
            assert torch.equal(h, given[site]), f"{name}: the edit at {site} wrote into its input"
            assert after[site] is h or after[site].data_ptr() != h.data_ptr()
    assert same(dict(carry), copy)
    assert same(lab.bench.artifact, kept)


def shape_and_dtype_are_kept(lab: Lab) -> None:
    """Edits give back the shape and dtype that they get, in every precision that models run in."""
    intervention = lab.intervention()
    rows = rows_of(lab, intervention)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        made = rows.to(dtype)
        _, carry = made.without_last().prefill("right").through(intervention)
        for states in (made.prefill("left"), made.last()):
            after, _ = states.through(intervention, carry)
            for site, h in after.items():
                assert h.shape == states.states[site].shape
                assert h.dtype == dtype, f"{site} gave {h.dtype} for {dtype}"


def take_commutes_with_apply(lab: Lab) -> None:
    """Choosing rows before an edit or after it is the same, rows that repeat and what was carried included."""
    intervention = lab.intervention()
    rows = rows_of(lab, intervention)
    started, step = rows.without_last().prefill("right"), rows.last()
    begun, carry = started.through(intervention)
    after, later = step.through(intervention, carry)
    assert all(len(value) == len(rows) for value in carry.values()), "what is carried must have one entry per row"
    orders = [[2, 0, 0, 5], [4], [6, 5, 4, 3, 2, 1, 0]]
    if intervention.groups is not None:  # samples are chosen together
        orders = [[5, 3, 4], [6], [6, 5, 4, 3, 2, 1, 0]]
    for order in orders:
        taken, fewer = intervention.take(row_index(order)), rows.take(order)
        begun_fewer, _ = fewer.without_last().prefill("right").through(taken)
        after_fewer, later_fewer = fewer.last().through(taken, chosen(carry, order))
        reals = started.real(begun), fewer.without_last().prefill("right").real(begun_fewer)
        for site in rows.states:
            for place, row in enumerate(order):
                _assert_close(reals[1][site][place], reals[0][site][row])
            _assert_close(after_fewer[site], after[site][row_index(order)])
        assert later_fewer.keys() == later.keys()
        for key, value in chosen(later, order).items():
            _assert_close(later_fewer[key], value)


def a_step_continues_the_prompt(lab: Lab) -> None:
    """A token decoded on its own is edited as it is in one pass over all tokens."""
    intervention = lab.intervention()
    if not intervention.uses_cache:
        return
    rows = rows_of(lab, intervention)
    whole = rows.prefill("left")
    at_once = whole.real(whole.through(intervention)[0])
    _, carry = rows.without_last().prefill("right").through(intervention)
    stepwise, _ = rows.last().through(intervention, carry)
    for site, h in stepwise.items():
        for row in range(len(rows)):
            _assert_close(h[row, 0], at_once[site][row][-1])


def rows_have_parameters_of_their_own(lab: Lab) -> None:
    """An intervention for many rows does to each what an intervention for that row alone does."""
    many = lab.intervention()
    rows = rows_of(lab, many)
    for members in lab.units():
        alone = lab.alone(members)
        assert set(alone.edits) <= set(many.edits)
        batch = rows.take(members).prefill("left")
        expected, _ = batch.through(alone)
        taken, _ = batch.through(many.take(row_index(members)))
        for site, h in expected.items():
            _assert_close(taken[site], h)


@dataclass(frozen=True, eq=False)
class Failing(Edit):
    """Works on the prompt and breaks while decoding."""

    inner: Edit

    def apply(self, h: Tensor, where: Where, carry: Carry) -> tuple[Tensor, Carry]:
        """The inner edit, once."""
        if int(where.positions.max()) >= int(where.prompt_lengths.max()):
            raise RuntimeError("planted")
        return self.inner.apply(h, where, carry)


def hooks_are_gone_after_an_exception(lab: Lab) -> None:
    """An edit that breaks half-way leaves no hook and no trace behind."""
    network, tally = lab.bench.subject.network, lab.bench.subject.tally
    before = next_token_logprobs(network, lab.prompts(), Intervention(), tally)
    whole = lab.intervention()
    last = max(whole.edits)
    broken = dataclasses.replace(whole, edits={**whole.edits, last: Failing(whole.edits[last])})
    endless = dataclasses.replace(lab.bench.subject, network=dataclasses.replace(network, stop_ids=frozenset()))
    with expected(RuntimeError, "planted"):
        endless.decode(lab.prompts(), broken, Sampling(3))
    if whole.groups is None:
        with expected(RuntimeError, "planted"):
            loglikelihood(network, [Text(prompt, FILLER) for prompt in lab.prompts()], broken, tally)
    assert hooks_of(network) == 0
    assert torch.equal(next_token_logprobs(network, lab.prompts(), Intervention(), tally), before)


def a_block_may_return_a_tensor_or_a_tuple(lab: Lab) -> None:
    """Edits arrive whichever way a module hands its states on, and what stands beside them stays."""
    whole = lab.intervention()
    # Keys and values are not what a module is given or returns.
    edits = {site: edit for site, edit in whole.edits.items() if site.stream not in STORED_STREAMS}
    intervention = dataclasses.replace(whole, edits=edits)
    if not sites_of(intervention):
        return
    states = rows_of(lab, intervention).prefill("right")
    expected, _ = states.through(intervention)
    for in_tuple in (False, True):
        blocks = Blocks(tuple(ToyBlock(in_tuple) for _ in range(lab.layout.num_layers)), FAMILIES["llama"])
        visited = _visited(blocks, intervention, states.states, states.where, in_tuple)
        for site, h in expected.items():
            assert torch.equal(visited[site], h), f"{site}, {in_tuple=}"


def _visited(
    blocks: Blocks, intervention: Intervention, states: Mapping[Site, Tensor], where: Where, in_tuple: bool
) -> dict[Site, Tensor]:
    visited: dict[Site, Tensor] = {}
    carry: Carry = MappingProxyType({})
    for site, h in states.items():
        edits = {site: intervention.edits[site]} if site in intervention.edits else {}
        probes = {site: intervention.probes[site]} if site in intervention.probes else {}
        with Steering(blocks, Intervention(edits, probes)) as steering:
            where = dataclasses.replace(where, groups=intervention.groups)
            steering.where, steering.carry = where, carry
            out = blocks.module(site)[0](hidden_states=h)
            carry = steering.carry
        if in_tuple:
            assert out[1] == "weights"
        visited[site] = out[0] if in_tuple else out
    return visited


def _logprobs(lab: Lab, intervention: Intervention) -> Tensor:
    """Next-token log-probabilities after every prompt."""
    return next_token_logprobs(lab.bench.subject.network, lab.prompts(), intervention, lab.bench.subject.tally)


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
STEERING = (
    steering_changes_the_model,
    padding_is_left_alone,
    padding_does_not_matter,
    edits_are_pure,
    shape_and_dtype_are_kept,
    take_commutes_with_apply,
    a_step_continues_the_prompt,
    rows_have_parameters_of_their_own,
    hooks_are_gone_after_an_exception,
    a_block_may_return_a_tensor_or_a_tuple,
)
"""Laws of every method that changes hidden states."""
