"""Searches over a real workbench on the tiny model, with an objective whose best point is known."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from toy_search import Marked

from harness.control import BestOfN
from harness.records.rows import trial_row
from harness.records.store import GenerationStore
from harness.search.dev_split import DevSplit, _Study
from harness.search.fixed import Fixed
from harness.search.objective import Objective
from harness.search.per_prompt import PerPrompt
from harness.search.proposals import Proposer, grid
from harness.search.search import Setting
from harness.subject.sizes import EngineConfig
from harness.tasks.facts import Facts
from harness.types import Access, Method, Range, Record, Score, Tools
from methods.baseline import Baseline
from methods.single_vector import SingleVector

PER_PROMPT = PerPrompt(num_trials=6, trials_per_round=2, sampler="tpe", startup_trials=2)
DEV_SPLIT = DevSplit(num_trials=4, trials_per_round=2, sampler="random", startup_trials=2, dev_examples=3)


def rows_of(place: Setting) -> list[dict]:
    return [trial_row(trial) for trial in place.store.trials()]


def parameters_of(rows: list[dict]) -> list[dict]:
    return [row["parameters"] for row in rows]


def test_per_prompt_spends_its_budget_and_stores_it(bench: Callable, setting: Callable) -> None:
    place, subject = setting(), bench()
    examples = subject.task.examples("test")
    selected = PER_PROMPT.select(subject, examples, {}, place)
    rows = rows_of(place)
    for example, selection in zip(examples, selected, strict=True):
        mine = [row for row in rows if row["example_id"] == example.id]
        assert sorted(row["trial"] for row in mine) == [-1, 0, 1, 2, 3, 4, 5]
        best = max(mine, key=lambda row: row["objective"])
        assert (selection.trial, selection.objective) == (best["trial"], best["objective"])
        assert selection.generation.parameters == best["parameters"]


def test_the_unsteered_text_wins_where_nothing_is_better(bench: Callable, setting: Callable) -> None:
    subject = bench()
    selected = PER_PROMPT.select(subject, subject.task.examples("test"), {}, setting(Marked(unsteered=1.0, best=9.0)))
    assert {(selection.trial, len(selection.generation.parameters)) for selection in selected} == {(-1, 0)}


def test_without_an_incumbent_no_unsteered_text_is_made(bench: Callable, setting: Callable, tmp_path: Path) -> None:
    plan = dataclasses.replace(PER_PROMPT, incumbent=False)
    subject = bench()
    examples = subject.task.examples("test")

    with_text = PER_PROMPT.select(bench(), examples, {}, setting())
    place = dataclasses.replace(setting(), store=GenerationStore(tmp_path / "without"))
    selected = plan.select(subject, examples, {}, place)

    assert {request.trial for request in subject.asked} == {0, 1, 2, 3, 4, 5}
    assert {row["trial"] for row in rows_of(place)} == {0, 1, 2, 3, 4, 5}
    assert plan.num_trials_of(len(examples)) == len(rows_of(place))

    again = bench()
    place = dataclasses.replace(setting(), store=GenerationStore(tmp_path / "without"))
    assert plan.select(again, examples, {}, place) == selected
    assert again.asked == [], "a finished search is read"

    for old, new in zip(with_text, selected, strict=True):
        assert new.trial == old.trial or old.trial == -1


def test_of_equals_the_first_wins(bench: Callable, setting: Callable) -> None:
    class Flat(Marked):
        def _worth(self, record: object) -> float:
            return 0.5

    subject = bench()
    examples = subject.task.examples("test")
    assert {s.trial for s in PER_PROMPT.select(subject, examples, {}, setting(Flat()))} == {-1}


@pytest.mark.parametrize("left", [1, 8, 20])
def test_what_a_kill_left_of_a_chunk_is_searched_anew(bench: Callable, setting: Callable, left: int) -> None:
    subject = bench()
    examples = subject.task.examples("test")
    PER_PROMPT.select(subject, examples, {}, setting())
    whole, path = rows_of(setting()), setting().store.folder / "trials.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:left]))
    again = bench()
    PER_PROMPT.select(again, examples, {}, setting())
    assert len(again.asked) == 7 * len(examples)
    assert rows_of(setting()) == whole


def test_a_prompt_goes_on_while_others_are_at_their_round(bench: Callable, setting: Callable, tmp_path: Path) -> None:
    """Two slots for three prompts with rounds of two rows: some are a round ahead, with the trials they always have."""
    narrow, wide = bench(), bench()
    narrow.subject = dataclasses.replace(narrow.subject, engine=EngineConfig(max_rows=2))
    examples, place = narrow.task.examples("test"), setting()
    PER_PROMPT.select(narrow, examples, {}, place)
    rounds = [trial.round for trial in place.store.trials()]
    assert rounds != sorted(rounds), "prompts waited for one another"

    other = dataclasses.replace(place, store=GenerationStore(tmp_path / "wide"))
    PER_PROMPT.select(wide, examples, {}, other)
    assert sorted(map(str, rows_of(other))) == sorted(map(str, rows_of(place)))


def test_chunks_offer_more_rows_than_run_at_once() -> None:
    assert PER_PROMPT.chunk_size(64) * PER_PROMPT.trials_per_round == 2 * 64
    assert PER_PROMPT.chunk_size(1) == 1
    assert DEV_SPLIT.chunk_size(64) == Fixed(parameters={}).chunk_size(64) == 4 * 64


def test_a_finished_search_runs_nothing(bench: Callable, setting: Callable) -> None:
    subject = bench()
    examples = subject.task.examples("test")
    first = PER_PROMPT.select(subject, examples, {}, setting())
    again = bench()
    assert PER_PROMPT.select(again, examples, {}, setting()) == first
    assert again.asked == []


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "grid"])
def test_replay_gives_the_same_proposals(sampler: str) -> None:
    ranges = {"k": Range(0.01, 1.0, 0.1, log=True), "layer": Range(0, 7, 3, integer=True)}

    def proposer() -> Proposer:
        return Proposer(ranges, sampler, 5, 8, 2)

    def worth(proposal: dict) -> float:
        return -abs(proposal["k"] - 0.3) - abs(proposal["layer"] - 4)

    straight, asked = proposer(), []
    for _ in range(4):
        asked.append(straight.ask(2))
        straight.tell([worth(proposal) for proposal in asked[-1]])
    for stop in (1, 2, 3):
        resumed = proposer()
        for proposals in asked[:stop]:
            resumed.replay(proposals, [worth(proposal) for proposal in proposals])
        assert resumed.ask(2) == asked[stop]


def test_a_replay_of_other_proposals_counts_what_was_measured() -> None:
    proposer = Proposer({"k": Range(0.0, 1.0, 0.5)}, "tpe", 0, 8, 1)
    proposer.replay([{"k": 0.25}, {"k": 0.75}], [0.0, 1.0])
    assert 0 <= proposer.ask(1)[0]["k"] <= 1


def test_learning_beats_its_random_start() -> None:
    def best(sampler: str, seed: int) -> float:
        proposer = Proposer({"a": Range(0.0, 1.0, 0.5), "b": Range(0.0, 1.0, 0.5)}, sampler, seed, 40, 8)
        values: list[float] = []
        for _ in range(10):
            proposals = proposer.ask(4)
            worths = [-((p["a"] - 0.31) ** 2) - (p["b"] - 0.83) ** 2 for p in proposals]
            proposer.tell(worths)
            values += worths
        return max(values)

    wins = [best("tpe", seed) > best("random", seed) for seed in range(8)]
    assert sum(wins) >= 6


def test_the_grid_walks_along_the_diagonal() -> None:
    ranges = {"k": Range(0.0, 2.0, 1.0), "g": Range(1.0, 16.0, 4.0, log=True), "layer": Range(0, 4, 2, integer=True)}
    points = grid(ranges, 2)
    assert points[0] == pytest.approx({"k": 0.5, "g": 2.0, "layer": 1})
    assert points[1] == pytest.approx({"k": 1.5, "g": 8.0, "layer": 3})


def test_dev_split_never_touches_a_test_item(bench: Callable, setting: Callable) -> None:
    place, subject = setting(), bench()
    dev = subject.task.examples("dev")
    chosen = DEV_SPLIT.prepare(subject, dev, place)
    asked = {request.example.id for request in subject.asked}
    assert asked == {example.id for example in dev[:3]}
    assert not asked & {example.id for example in subject.task.examples("test")}
    rows = rows_of(place)
    assert len(rows) == 4 * 3
    best = max(
        sorted({row["trial"] for row in rows}), key=lambda t: sum(r["objective"] for r in rows if r["trial"] == t)
    )
    assert chosen == next(row["parameters"] for row in rows if row["trial"] == best)


def test_dev_split_continues_with_the_same_proposals(bench: Callable, setting: Callable) -> None:
    dev = bench().task.examples("dev")
    chosen = DEV_SPLIT.prepare(bench(), dev, setting())
    whole = parameters_of(rows_of(setting()))
    path = setting().store.folder / "trials.jsonl"
    # The second round of two sets with three items each is torn.
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:8]))
    again = bench()
    assert DEV_SPLIT.prepare(again, dev, setting()) == chosen
    assert parameters_of(rows_of(setting())) == whole
    assert len(again.asked) == 2 * 3


PER_GROUP = dataclasses.replace(DEV_SPLIT, per_group=True, dev_examples=None)


class Divided(Facts):
    """Questions in two groups."""

    @cached_property
    def _examples(self) -> dict:
        return {
            split: [dataclasses.replace(e, group="ab"[i % 2]) for i, e in enumerate(examples)]
            for split, examples in super()._examples.items()
        }


@dataclass(frozen=True, kw_only=True)
class MarkedByGroup(Marked):
    """Group a is best at 0.2, group b at 0.9."""

    def _worth(self, record: Record) -> float:
        (value,) = record.generation.parameters.values()
        return 1 - abs(value - {"a": 0.2, "b": 0.9}[record.example.group])


@pytest.fixture
def divided(bench: Callable) -> Callable:
    return lambda **sizes: bench(task=Divided(limit=3, train_size=8, max_new_tokens=3, **sizes))


def test_every_group_gets_a_set_of_its_own(divided: Callable, setting: Callable) -> None:
    place, subject = setting(MarkedByGroup()), divided(dev_size=5)
    dev = subject.task.examples("dev")
    chosen = PER_GROUP.prepare(subject, dev, place)
    rows = rows_of(place)
    assert len(rows) == PER_GROUP.num_trials * len(dev) == PER_GROUP.num_dev_trials_of(len(dev))
    for group, best in (("a", 0.2), ("b", 0.9)):
        ids = {example.id for example in dev if example.group == group}
        tried = {row["parameters"]["k_all"] for row in rows if row["example_id"] in ids}
        assert len(tried) == PER_GROUP.num_trials
        assert chosen[group] == {"k_all": min(tried, key=lambda value: abs(value - best))}
    assert chosen["a"] != chosen["b"]

    examples = subject.task.examples("test")
    selected = PER_GROUP.select(subject, examples, chosen, place)
    for example, selection in zip(examples, selected, strict=True):
        assert selection.generation.parameters == chosen[example.group]


@pytest.mark.parametrize("method", [Baseline(), SingleVector(layer=1, strength=0.3)], ids=["un-steered", "fixed"])
def test_a_search_per_group_without_anything_to_search_runs_every_item_once(
    method: Method, bench: Callable, setting: Callable
) -> None:
    place = setting(MarkedByGroup())
    subject = bench(method, task=Divided(limit=3, dev_size=5, train_size=8, max_new_tokens=3))
    examples = subject.task.examples("test")
    prepared = PER_GROUP.prepare(subject, subject.task.examples("dev"), place)
    selected = PER_GROUP.select(subject, examples, prepared, place)
    assert [selection.generation.parameters for selection in selected] == [prepared] * len(examples)
    assert rows_of(place) == []


@pytest.mark.parametrize("kept", [3, 10, 13, 20])
def test_a_search_per_group_continues_with_the_same_proposals(divided: Callable, setting: Callable, kept: int) -> None:
    dev = divided(dev_size=5).task.examples("dev")
    chosen = PER_GROUP.prepare(divided(dev_size=5), dev, setting(MarkedByGroup()))
    whole = rows_of(setting())
    path = setting().store.folder / "trials.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:kept]))
    again = divided(dev_size=5)
    assert PER_GROUP.prepare(again, dev, setting(MarkedByGroup())) == chosen
    assert rows_of(setting()) == whole
    assert len(again.asked) == 20 - kept // 10 * 10


def test_a_group_searches_as_if_it_were_alone(divided: Callable, setting: Callable) -> None:
    subject = divided(dev_size=5)
    dev = subject.task.examples("dev")
    chosen = PER_GROUP.prepare(subject, dev, setting(MarkedByGroup()))
    limited = dataclasses.replace(PER_GROUP, dev_examples=1)
    (setting().store.folder / "trials.jsonl").unlink()
    few = limited.prepare(subject, dev, setting(MarkedByGroup()))
    assert few == chosen, "the worth of a set is the same on every item here"
    assert len(rows_of(setting())) == 2 * limited.num_trials


def test_a_group_without_dev_items_is_an_error(divided: Callable, setting: Callable) -> None:
    subject = divided(dev_size=1)
    with pytest.raises(ValueError, match="dev items of every group; there are none of 'b'"):
        PER_GROUP.prepare(subject, subject.task.examples("dev"), setting(MarkedByGroup()))


def test_what_a_search_sees_is_declared() -> None:
    assert PerPrompt.access == {Access.GOLD}
    assert DevSplit.access == Fixed.access == frozenset()


def test_fixed_runs_defaults_and_given_values(bench: Callable, setting: Callable) -> None:
    subject = bench()
    assert Fixed(parameters={}).prepare(subject, [], setting()) == {"k_all": 0.5}
    prepared = Fixed(parameters={"k_all": 0.2}).prepare(subject, [], setting())
    selected = Fixed(parameters={}).select(subject, subject.task.examples("test"), prepared, setting())
    assert [selection.generation.parameters for selection in selected] == [{"k_all": 0.2}] * 3


def test_best_of_n_draws_other_texts_with_the_same_budget(bench: Callable, setting: Callable) -> None:
    subject = bench(control=BestOfN(temperature=2.0))
    place = setting()
    PER_PROMPT.select(subject, subject.task.examples("test")[:1], {}, place)
    rows = rows_of(place)
    assert [row["trial"] for row in rows] == [-1, 0, 1, 2, 3, 4, 5]
    assert all(row["parameters"] == {} for row in rows)
    assert len({tuple(row["token_ids"]) for row in rows}) > 3


GIVEN = dataclasses.replace(PER_GROUP, values={"k_all": [0.1, 0.3, 0.8]})


def test_given_values_are_tried_and_no_others_and_ties_go_to_the_first(divided: Callable, setting: Callable) -> None:
    place, subject = setting(MarkedByGroup()), divided(dev_size=5)
    dev = subject.task.examples("dev")
    chosen = GIVEN.prepare(subject, dev, place)
    assert chosen == {"a": {"k_all": 0.1}, "b": {"k_all": 0.8}}, "0.1 and 0.3 are as far from a's best, 0.2"
    rows = rows_of(place)
    assert [row["parameters"]["k_all"] for row in rows] == [k for k in (0.1, 0.3, 0.8) for _ in dev]
    assert len(rows) == GIVEN.num_dev_trials_of(len(dev))


@pytest.mark.parametrize("kept", [4, 5, 9])
def test_given_values_continue_after_a_kill(divided: Callable, setting: Callable, kept: int) -> None:
    search = dataclasses.replace(GIVEN, trials_per_round=1)
    dev = divided(dev_size=5).task.examples("dev")
    chosen = search.prepare(divided(dev_size=5), dev, setting(MarkedByGroup()))
    whole = rows_of(setting())
    path = setting().store.folder / "trials.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:kept]))
    assert search.prepare(divided(dev_size=5), dev, setting(MarkedByGroup())) == chosen
    assert rows_of(setting()) == whole


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strength": [0.1]}, "must hold values for all of k_all, which the method leaves open"),
        ({"k_all": []}, "must hold values for all of k_all"),
        ({"k_all": [0.5, 1.5]}, "k_all must lie between 0 and 1 .*got 1.5"),
    ],
)
def test_values_that_do_not_fit_the_method_are_refused(bench: Callable, values: dict, message: str) -> None:
    subject = bench()
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DEV_SPLIT, values=values).check(subject.method, subject.subject.layout)


@dataclass(frozen=True, kw_only=True)
class SilentAbove(Marked):
    """Above 0.5 one dev item is worth -0.4 and the others get no score; below, every item is worth -0.3."""

    scored: str = ""

    def score(self, records: list[Record], tools: Tools) -> list[Score]:
        return [self._of(record) for record in records]

    def _of(self, record: Record) -> Score:
        above = record.generation.parameters["k_all"] > 0.5
        if above and record.example.id != self.scored:
            return Score(record.example.id, "closeness", None, "silent")
        return Score(record.example.id, "closeness", -0.4 if above else -0.3)


def test_what_could_not_be_scored_is_left_out_of_the_mean(bench: Callable, setting: Callable) -> None:
    """Counted as 0, the silent items would lift the mean of 0.9 above that of 0.2."""
    subject = bench()
    dev = subject.task.examples("dev")
    place = setting(SilentAbove(scored=dev[0].id))
    term = dataclasses.replace(place.objective.terms[0], unscored="skip")
    place = dataclasses.replace(place, objective=Objective(terms=(term,)))
    search = dataclasses.replace(DEV_SPLIT, values={"k_all": [0.9, 0.2]}, dev_examples=None)
    assert search.prepare(subject, dev, place) == {"k_all": 0.2}
    assert not place.objective.counts({"closeness": None})
    assert setting().objective.counts({"closeness": None}), "the worst value counts where that is asked for"


class Crossed(Divided):
    """Every item's parameters are chosen on the dev items of the other group."""

    @cached_property
    def _examples(self) -> dict:
        others = {"a": "b", "b": "a"}
        return {
            split: [dataclasses.replace(e, tuning=others[e.group] if split == "test" else e.group) for e in examples]
            for split, examples in super()._examples.items()
        }


def test_an_item_may_be_tuned_on_others_than_its_group(bench: Callable, setting: Callable) -> None:
    subject = bench(task=Crossed(limit=3, dev_size=5, train_size=8, max_new_tokens=3))
    place = setting(MarkedByGroup())
    prepared = GIVEN.prepare(subject, subject.task.examples("dev"), place)
    test = subject.task.examples("test")
    selected = GIVEN.select(subject, test, prepared, place)
    expected = [{"a": 0.8, "b": 0.1}[example.group] for example in test]
    assert [selection.generation.parameters["k_all"] for selection in selected] == expected


def test_factors_are_chosen_as_the_authors_choose_them(golden: Callable) -> None:
    """AxBench: the factor with the best mean over the first half; equal ones go to the lower."""
    reference = golden("axbench")
    means = reference["select_mean_by_factor"].tolist()
    study = _Study([], None, [({"strength": f}, m) for f, m in zip(reference["factors"].tolist(), means, strict=True)])
    assert study.best == {"strength": float(reference["best_factor"])}
    tied = _Study([], None, [({"strength": f}, 0.5) for f in reference["factors"].tolist()])
    assert tied.best == {"strength": float(reference["factors"][0])}
