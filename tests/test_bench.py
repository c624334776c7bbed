"""The bench on a tiny model: every way does the same work, and what is reported follows from what was timed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.bench import report
from harness.bench.__main__ import arguments, main
from harness.bench.memory import measure
from harness.bench.ours import Products, take_over
from harness.bench.plain import hooked
from harness.bench.suite import WAYS, Models, distinct_configurations, pool, side_by_side, way
from harness.bench.timing import Stopwatch, Timing, median, ratio
from harness.bench.work import Work, model_config
from harness.subject.load import ModelConfig, load_model
from harness.types import Site

TINY = ModelConfig(kind="tiny", family="llama", device="cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models(TINY)


@pytest.fixture(scope="module")
def work(models: Models) -> Work:
    return Work.of(models.plain(), 4, 5)


@pytest.fixture(scope="module")
def timings(models: Models, work: Work) -> dict[str, list[Timing]]:
    return side_by_side(list(WAYS), models, work, repeats=2, singles=3, note=lambda _line: None)


class TestWays:
    def test_all_write_the_full_length(self, timings: dict[str, list[Timing]], work: Work) -> None:
        for name in ("a", "b", "c", "d", "e", "e16"):
            assert {len(row) for row in timings[name][0].completions} == {work.new_tokens}

    def test_ways_that_should_agree_do(self, timings: dict[str, list[Timing]]) -> None:
        first = {name: runs[0].completions for name, runs in timings.items()}
        assert first["a"] == first["b"] == first["e"][:3]
        assert first["c"] == first["d"]
        assert first["d"] != first["e"]

    def test_every_part_takes_time(self, timings: dict[str, list[Timing]]) -> None:
        for runs in timings.values():
            assert len(runs) == 2
            assert all(min(run.prefill, run.decode, run.scoring) > 0 for run in runs)

    def test_an_unknown_one_is_refused(self, models: Models, work: Work) -> None:
        with pytest.raises(ValueError, match="way must be one of a, b, c, d, e, e16, f, fp, got 'z'"):
            way("z", models, work, 1)

    def test_plain_hooks_are_taken_off(self, models: Models, work: Work) -> None:
        block = models.plain().model.model.layers[0]
        with hooked(models.plain(), work, 0):
            assert len(block._forward_hooks) == 1
        assert len(block._forward_hooks) == 0

    def test_strengths_and_directions(self, work: Work) -> None:
        edits = work.intervention(torch.device("cpu"), torch.float32, layers=2).edits
        assert set(edits) == {Site(0), Site(1)}
        assert len(set(edits[Site(0)].strength.tolist())) == work.rows

    def test_ceiling_multiplies_every_matrix(self, models: Models) -> None:
        model = models.plain().model
        products = Products.of(model)
        two_dimensional = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear)}
        assert {id(layer.weight) for layer in (*products.blocks, products.head)} == two_dimensional

    def test_ceiling_of_a_family_with_transposed_weights(self) -> None:
        loaded = load_model(ModelConfig(kind="tiny", family="gpt2", device="cpu"))
        work = Work.of(loaded, 2, 3)
        assert len(Products.of(loaded.model).blocks) == 4 * loaded.layout.num_layers
        assert Products.of(loaded.model).timing(work, Stopwatch(loaded.device)).total > 0


class TestFurtherFigures:
    def test_distinct_strengths(self, models: Models) -> None:
        found = distinct_configurations(models, 6, 3, 2, 2, [1, 6])
        assert {count: len(runs) for count, runs in found.items()} == {1: 2, 6: 2}
        assert Work.of(models.plain(), 6, 2, 2).strengths.unique().numel() == 2

    def test_a_pool_has_every_prompt_with_every_trial(self, models: Models) -> None:
        timing = pool(models, prompts=3, trials=2, new_tokens=3, at_once=4)
        assert timing.trials == len(timing.completions) == 6

    def test_peak_memory_holds_the_weights(self) -> None:
        found = measure("tiny", "cpu", None, 2, 3, torch.get_num_threads())
        assert found["peak_bytes"] > found["weights_bytes"] > 0


class TestReport:
    def test_medians_and_ratios(self) -> None:
        fast = [Timing(10, 1.0, seconds, 0.5) for seconds in (2.0, 9.0, 3.0)]
        slow = [Timing(1, 1.0, seconds, 0.5) for seconds in (4.0, 9.0, 1.5)]
        assert median(fast, lambda run: run.decode) == 3.0
        assert ratio(fast, slow, lambda run: run.decode) == pytest.approx(10.0)
        assert (fast[0] + slow[0]).trials == 11
        assert fast[0].scored_in(2.0).total == 5.0

    def test_figures_and_table(self, timings: dict[str, list[Timing]], work: Work) -> None:
        found = report.figures(timings, work.new_tokens)
        row = found["ways"]["e"]
        middle = sorted(run.trials / run.generation for run in timings["e"])
        assert row["trials_per_second"] == pytest.approx(sum(middle) / 2)
        assert found["rows_that_differ"]["d from c"] == 0.0
        lines = report.table(found).splitlines()
        assert sum(line.startswith("| (") for line in lines) == len(WAYS) + len(found["ratios"])

    def test_machine(self) -> None:
        assert report.machine("cpu")["torch"] == torch.__version__


class TestCommandLine:
    def test_writes_json_and_a_table(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        output = tmp_path / "bench.json"
        options = ["--model", "tiny", "--batch", "2", "--new-tokens", "3", "--repeats", "1", "--ways", "d", "e", "f"]
        assert main([*options, "--threads", "1", "--output", str(output)]) == 0
        found = json.loads(output.read_text())
        assert set(found["batches"]["2"]["ways"]) == {"d", "e", "f"}
        assert found["settings"]["new_tokens"] == 3
        assert "| (e) / (f) | decoding |" in capsys.readouterr().out

    @pytest.mark.parametrize("option", [["--batch", "0"], ["--new-tokens", "1"], ["--ways", "z"], ["--clock", "sun"]])
    def test_refuses(self, option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            arguments(option)
        assert option[0] in capsys.readouterr().err

    def test_models_by_name_and_by_folder(self) -> None:
        assert model_config("smollm2", "cpu", "bfloat16").dtype == "bfloat16"
        assert model_config("some/model", "cpu", None).kind == "hub"


def test_taking_over_leaves_a_plain_copy_alone(models: Models) -> None:
    network = take_over(load_model(TINY))
    assert network.model is not models.plain().model
    assert models.plain().model.config._attn_implementation == "sdpa"
