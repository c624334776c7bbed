"""The engine's laws: what a row writes depends on the row alone, however the batch is composed."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from engine_parts import (
    ALONE,
    FEW,
    PROMPTS,
    SEEDS,
    TOGETHER,
    decode,
    greedy_by_transformers,
    hooks_of,
    ids,
    network_of,
    one_thread,  # noqa: F401
    shifts,
    without_cache,
)

from harness.subject.decode import Decoder
from harness.subject.load import Loaded, ModelConfig, load_model
from harness.subject.network import Network
from harness.subject.passes import Text, loglikelihood, next_token_logprobs
from harness.subject.sampling import LOOP_WINDOW, NEAR_TIE, Sampling, best_token, is_looping
from harness.subject.sizes import EngineConfig, rows_that_fit
from harness.subject.tally import Tally
from harness.types import Carry, Edit, Intervention, Probe, Site, Where

GREEDY = Sampling(14)
SAMPLED = Sampling(14, temperature=0.9)


@pytest.fixture
def network() -> Network:
    return network_of(load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float64")))


class TestOneRowAlone:
    """Law (a): float64, every family."""

    @pytest.fixture
    def family(self, tiny_family_config: ModelConfig) -> Network:
        return network_of(load_model(tiny_family_config))

    @pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
    def test_batches_and_cache_change_nothing(self, family: Network, sampling: Sampling) -> None:
        for intervention in (Intervention(), shifts(family)):
            alone = decode(family, intervention, sampling, ALONE)
            assert len({len(row.token_ids) for row in alone}) > 2, "rows must end at different times"
            assert decode(family, intervention, sampling, TOGETHER) == alone
            assert decode(family, intervention, sampling, FEW) == alone
            assert decode(family, without_cache(intervention), sampling, FEW) == alone

    def test_steering_changes_something(self, family: Network) -> None:
        assert ids(decode(family, shifts(family), GREEDY)) != ids(decode(family, Intervention(), GREEDY))

    def test_unsteered_is_what_transformers_writes(self, tiny_family_config: ModelConfig, family: Network) -> None:
        reference = load_model(tiny_family_config).model
        reference.set_attn_implementation("eager")
        written = decode(family, Intervention(), Sampling(12, ignore_stop=True), FEW)
        assert ids(written) == [greedy_by_transformers(reference, prompt, 12) for prompt in PROMPTS]


class TestRealModel:
    @pytest.mark.real
    def test_teacher_forced_logits_do_not_depend_on_the_batch(self, default_config: ModelConfig) -> None:
        # float64 shows a real dependence on the batch, of which there is none. In float32 the order of a sum changes
        # with the batch's shape and the CPU's instruction set: the two may differ by as much as float32 itself errs.
        exact_alone, exact_together = self._alone_and_together(dataclasses.replace(default_config, dtype="float64"))
        assert (exact_alone - exact_together).abs().max() < 1e-9
        alone, together = self._alone_and_together(default_config)
        rounding = (alone - exact_alone).abs().max()
        assert rounding < 1e-2
        assert (alone - together).abs().max() < 2 * rounding

    def _alone_and_together(self, config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of next tokens and of given completions, each row by itself and all rows in one batch."""
        network = network_of(load_model(config), stop_every=0)
        prompts = [[(37 * row + 11 * at) % 40000 + 100 for at in range(6 + 5 * row)] for row in range(6)]
        texts = [Text(tuple(prompt[:4]), tuple(prompt[4:])) for prompt in prompts]
        intervention = shifts(network, len(prompts))

        def measured(rows: list[int]) -> torch.Tensor:
            chosen, edits = [prompts[row] for row in rows], intervention.take(torch.tensor(rows))
            with torch.no_grad():
                scored = loglikelihood(network, [texts[row] for row in rows], edits, Tally())
            return torch.cat([next_token_logprobs(network, chosen, edits, Tally()).flatten(), *scored])

        all_rows = range(len(prompts))
        vocabulary = len(prompts) * network.model.config.vocab_size
        parts = [measured([row]).split([vocabulary // len(prompts), len(texts[row].completion)]) for row in all_rows]
        alone = torch.cat([*(next_token for next_token, _ in parts), *(scored for _, scored in parts)])
        return alone.double(), measured(list(all_rows)).double()

    @pytest.mark.real
    def test_a_first_difference_is_a_counted_near_tie(self, default_config: ModelConfig) -> None:
        loaded = load_model(default_config)
        network = network_of(loaded, stop_every=0)
        prompts = [list(loaded.tokenizer(f"My number is {n}, and").input_ids) for n in range(3, 60, 7)]
        together = decode(network, Intervention(), Sampling(8), prompts=prompts)
        for row, alone in zip(together, decode(network, Intervention(), Sampling(8), ALONE, prompts), strict=True):
            assert row.token_ids == alone.token_ids or row.near_ties + alone.near_ties > 0


class TestLeavingAndJoining:
    def test_nothing_is_computed_for_finished_rows(self, network: Network) -> None:
        tally = Tally()
        rows = decode(network, shifts(network), GREEDY, FEW, tally=tally)
        chosen = sum(len(row.token_ids) + (row.finish == "stop") for row in rows)
        needed = sum(map(len, PROMPTS)) + chosen - len(rows)
        assert {row.finish for row in rows} == {"stop", "length"}
        assert tally.forward_tokens - tally.padding_tokens == needed

    def test_every_row_is_reported_once(self, network: Network) -> None:
        seen: list[int] = []
        decoder = Decoder(network, PROMPTS, shifts(network), GREEDY, SEEDS)
        decoder.run(FEW, on_finish=seen.append)
        assert sorted(seen) == list(range(len(PROMPTS)))
        assert seen != sorted(seen)

    def test_work_is_timed(self, network: Network) -> None:
        tally = Tally()
        decode(network, Intervention(), GREEDY, tally=tally)
        assert tally.prefill_seconds > 0
        assert tally.decode_seconds > 0

    def test_no_rows(self, network: Network) -> None:
        assert decode(network, Intervention(), GREEDY, prompts=[]) == []

    def test_an_empty_prompt_is_refused(self, network: Network) -> None:
        with pytest.raises(ValueError, match="at least one token"):
            decode(network, Intervention(), GREEDY, prompts=[[5, 6], []])


class TestMemory:
    def test_shrinks_and_goes_on(self, network: Network) -> None:
        @dataclasses.dataclass(frozen=True)
        class Small(Network):
            def hidden(self, ids: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
                if ids.shape[0] > 2:
                    raise torch.OutOfMemoryError("out of memory")
                return super().hidden(ids, *args, **options)

        small, tally = Small(**vars(network)), Tally()
        rows = decode(small, shifts(network), GREEDY, tally=tally)
        assert rows == decode(network, shifts(network), GREEDY)
        assert tally.batch_shrinks == 2
        assert hooks_of(network) == 0

    def test_once_in_the_middle_of_decoding(self, network: Network) -> None:
        failures = [torch.OutOfMemoryError("out of memory")]

        @dataclasses.dataclass(frozen=True)
        class Unlucky(Network):
            def hidden(self, ids: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
                if ids.shape[1] == 1 and failures:
                    raise failures.pop()
                return super().hidden(ids, *args, **options)

        tally = Tally()
        assert decode(Unlucky(**vars(network)), shifts(network), GREEDY, tally=tally) == decode(
            network, shifts(network), GREEDY
        )
        assert tally.batch_shrinks == 1

    def test_a_single_row_that_does_not_fit_is_an_error(self, network: Network) -> None:
        @dataclasses.dataclass(frozen=True)
        class Tiny(Network):
            def hidden(self, *args: object, **options: object) -> torch.Tensor:
                raise torch.OutOfMemoryError("out of memory")

        with pytest.raises(torch.OutOfMemoryError):
            decode(Tiny(**vars(network)), Intervention(), GREEDY)

    def test_rows_follow_the_budget(self, network: Network) -> None:
        assert rows_that_fit(network, EngineConfig(token_budget=1000), 100) == 10
        assert rows_that_fit(network, EngineConfig(token_budget=1000, max_rows=4), 100) == 4
        assert rows_that_fit(network, EngineConfig(token_budget=1000), 5000) == 1
        assert 1 <= rows_that_fit(network, EngineConfig(), 100) <= 64

    @pytest.mark.parametrize("option", ["token_budget", "max_rows"])
    def test_a_size_that_holds_nothing_is_refused(self, option: str) -> None:
        with pytest.raises(ValueError, match=f"engine.{option} must be at least 1, got 0"):
            EngineConfig(**{option: 0})


class _Failing(Edit):
    def apply(self, h: torch.Tensor, where: object, carry: object) -> tuple[torch.Tensor, object]:
        if not where.prefill:
            raise RuntimeError("edit failed")
        return h, carry


class TestHooks:
    def test_are_gone_afterwards(self, network: Network) -> None:
        decode(network, shifts(network), GREEDY)
        assert hooks_of(network) == 0

    def test_are_gone_after_an_exception(self, network: Network) -> None:
        with pytest.raises(RuntimeError, match="edit failed"):
            decode(network, Intervention({Site(2): _Failing(), Site(0): _Failing()}), GREEDY)
        assert hooks_of(network) == 0

    def test_an_unknown_layer_leaves_nothing_behind(self, network: Network) -> None:
        edits = {Site(0): _Failing(), Site(99): _Failing()}
        with pytest.raises(ValueError, match="layer must be from 0 to 3, got 99"):
            decode(network, Intervention(edits), GREEDY)
        assert hooks_of(network) == 0

    def test_a_probe_reads_before_the_edit_of_its_site(self, network: Network) -> None:
        read: list[torch.Tensor] = []
        before: list[torch.Tensor] = []

        class Watch(Probe):
            def read(self, h: torch.Tensor, where: object, carry: object) -> object:
                read.append(h)
                return carry

        edits = shifts(network).edits
        decoder = Decoder(network, PROMPTS, Intervention(edits, {Site(1): Watch()}), Sampling(2), SEEDS)
        decoder.run(TOGETHER, observer=lambda site, h, _new, _where: before.append(h) if site == Site(1) else None)
        assert len(read) == len(before) == 2
        assert all(one is other for one, other in zip(read, before, strict=True))


class TestSampling:
    def test_a_row_depends_on_its_seed_alone(self, network: Network) -> None:
        rows = decode(network, Intervention(), SAMPLED)
        backwards = Decoder(network, PROMPTS[::-1], Intervention(), SAMPLED, SEEDS[::-1]).run(FEW)
        assert rows == backwards[::-1]
        other = Decoder(network, PROMPTS, Intervention(), SAMPLED, [seed + 1 for seed in SEEDS]).run(FEW)
        assert ids(rows) != ids(other)

    def test_tokens_are_as_frequent_as_they_are_likely(self, network: Network) -> None:
        count = 1000
        sampling = Sampling(1, temperature=0.7, ignore_stop=True)
        rows = Decoder(network, [PROMPTS[0]] * count, Intervention(), sampling, range(count)).run(
            EngineConfig(max_rows=500)
        )
        logits = next_token_logprobs(network, [PROMPTS[0]], Intervention(), Tally())[0]
        likely = torch.softmax(logits / 0.7, -1)
        seen = torch.bincount(torch.tensor([row.token_ids[0] for row in rows]), minlength=len(likely)) / count
        assert (seen - likely).abs().sum() / 2 < 0.12

    def test_ignored_stops_run_to_the_full_length(self, network: Network) -> None:
        rows = decode(network, Intervention(), Sampling(14, ignore_stop=True))
        assert {(len(row.token_ids), row.finish) for row in rows} == {(14, "length")}


class TestNearTies:
    @pytest.mark.parametrize("vocabulary", [5, 263, 512, 50257])
    def test_best_token_and_its_lead(self, vocabulary: int) -> None:
        logits = torch.randn(7, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
        logits[3, [1, -1]] = 50.0
        top = logits.topk(2).values
        chosen, lead = best_token(logits.clone())
        assert torch.equal(chosen, logits.argmax(-1))
        assert torch.equal(lead, top[:, 0] - top[:, 1])

    def test_every_step_of_a_twin_vocabulary_is_counted(self, network: Network) -> None:
        assert sum(row.near_ties for row in decode(network, Intervention(), GREEDY)) == 0
        weight = network.model.get_output_embeddings().weight
        weight[1::2] = weight[:-1:2] + NEAR_TIE / 1e6
        rows = decode(network, Intervention(), Sampling(6, ignore_stop=True))
        assert [row.near_ties for row in rows] == [6] * len(rows)


class TestLoops:
    def test_short_cycles_are_loops(self) -> None:
        rows = [[9, 9] + [1, 2, 3] * 12, [7] * 40, list(range(40)), [*range(9)] * 4]
        last = torch.tensor([row[-LOOP_WINDOW:] for row in rows])
        assert is_looping(last).tolist() == [True, True, False, False]

    def test_pruned_only_on_request(self, network: Network) -> None:
        for parameter in network.model.parameters():
            parameter.zero_()
        long = Sampling(50, ignore_stop=True)
        assert {row.finish for row in decode(network, Intervention(), long)} == {"length"}
        pruned = decode(network, Intervention(), dataclasses.replace(long, prune_loops=True))
        assert {(row.finish, len(row.token_ids)) for row in pruned} == {("pruned", 32)}


def test_loaded_models_share_no_network(load_tiny: Callable[..., Loaded]) -> None:
    """A model that was not handed to a network still answers transformers' own calls."""
    model = load_tiny("llama").model
    assert model(input_ids=torch.tensor([PROMPTS[0]])).logits.shape[1] == len(PROMPTS[0])


@dataclasses.dataclass(frozen=True, eq=False)
class UpTheSlope(Edit):
    """One step along the gradient of a scorer of the state, taken inside the edit."""

    weight: torch.Tensor

    def apply(self, h: torch.Tensor, where: Where, carry: Carry) -> tuple[torch.Tensor, Carry]:
        with torch.enable_grad():
            state = h.detach().requires_grad_()
            score = torch.einsum("btd,bd->bt", state, self.weight).sin().sum()
            (slope,) = torch.autograd.grad(score, state)
        return where.keep(h + slope, h), carry


@pytest.mark.parametrize("uses_cache", [True, False])
def test_an_edit_may_take_gradients_while_decoding(network: Network, uses_cache: bool) -> None:
    weight = torch.randn(
        len(PROMPTS), network.layout.width, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    steered = Intervention({Site(1): UpTheSlope(weight)}, uses_cache=uses_cache, gradients=True)

    together = ids(decode(network, steered, GREEDY))
    assert together == ids(decode(network, steered, GREEDY, FEW))
    assert together != ids(decode(network, Intervention(), GREEDY))

    texts = [Text(tuple(prompt), (9, 8)) for prompt in PROMPTS]
    undeclared = dataclasses.replace(steered, gradients=False)
    with torch.no_grad():
        likelihoods = [loglikelihood(network, texts, one, Tally()) for one in (steered, undeclared)]
    torch.testing.assert_close(*likelihoods)

    with pytest.raises(RuntimeError, match="build its Intervention with gradients=True"):
        decode(network, undeclared, GREEDY)
    assert hooks_of(network) == 0
