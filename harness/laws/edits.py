"""The laws of methods that change hidden states, on their edits. Each takes a `Lab` and raises AssertionError."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from harness.laws.lab import Lab, expected, row_index
from harness.laws.measure import FILLER, SIDES, assert_close, hooks_of, logprobs_of, rows_of, same
from harness.laws.states import chosen, sites_of
from harness.laws.toy_block import ToyBlock
from harness.steering import STORED_STREAMS
from harness.subject.hooks import Steering
from harness.subject.passes import Text, loglikelihood, next_token_logprobs
from harness.subject.sampling import Sampling
from harness.subject.sites import FAMILIES, Blocks
from harness.types import Carry, Edit, Intervention, Site, Where


def steering_changes_the_model(lab: Lab) -> None:
    """Away from null, predictions move: without this, every other law could hold for nothing."""
    moved = (logprobs_of(lab, lab.intervention()) - logprobs_of(lab, Intervention())).abs().amax(1)
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
                    assert_close(together[site][row], h)


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
                assert_close(reals[1][site][place], reals[0][site][row])
            assert_close(after_fewer[site], after[site][row_index(order)])
        assert later_fewer.keys() == later.keys()
        for key, value in chosen(later, order).items():
            assert_close(later_fewer[key], value)


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
            assert_close(h[row, 0], at_once[site][row][-1])


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
            assert_close(taken[site], h)


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
