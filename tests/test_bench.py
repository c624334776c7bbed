"""The bench on a tiny model: every way does the same work, and what is reported follows from what was timed."""

import itertools
import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from hydra.utils import instantiate
from laws.yamls import names_of

from bench import batching, growth, joint, judging, methods, report, search, training
from bench.__main__ import TABLES, arguments, asked_tables, main
from bench.growth import Point
from bench.jobs import Jobs, questions
from bench.memory import measure, peak_memory
from bench.ours import Products
from bench.plain import hooked
from bench.suite import WAYS, Models, side_by_side, way
from bench.timing import Stopwatch, Timing, median, ratio
from bench.work import Work, model_config, model_overrides
from harness.laws.lab import composed
from harness.laws.tiny_concepts import concepts_folder
from harness.subject.load import ModelConfig, load_model
from harness.types import Site

REPOSITORY = Path(__file__).parents[1]
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
def jobs(models: Models) -> Jobs:
    return Jobs(models, model_overrides("tiny", "cpu", None))


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


def test_small_and_large_batches_write_the_same(models: Models) -> None:
    timings = batching.measure(models, 70, 3)
    assert (timings["rows"], timings["tokens"], timings["batches"]) == (70, 210, [64, 16])
    assert timings["rows_that_differ"] == timings["of_them_at_a_near_tie"] == 0
    assert "70 rows in batches of 64 and of 16: 0 differ" in batching.table(timings)


def test_a_judge_grades_alike_in_one_call_and_one_by_one() -> None:
    figures = judging.measure(model_config("smollm2", "cpu", None), 3)
    assert (figures["gradings"], figures["unscored"], figures["labels_that_differ"]) == (3, 0, 0)
    assert min(figures[name]["gradings_per_second"] for name in judging.WAYS) > 0
    assert "0 of 3 labels differ" in judging.table(figures)


def test_prompts_beyond_the_context_of_a_judge_are_said() -> None:
    figures = judging.measure(ModelConfig(kind="tiny", family="llama", device="cpu"), 2)
    assert figures["unscored"] == 4
    assert "4 were not to be had" in judging.table(figures)


def test_joint_products_are_timed_beside_those_apart(models: Models) -> None:
    groups = joint.same_states(models.plain().model)
    assert [len(group) for group in groups[:2]] == [3, 2]
    states = torch.randn(5, 1, groups[0][0].in_features)
    for layer, plain in zip(joint.joint(groups[0]), groups[0], strict=True):
        torch.testing.assert_close(layer(states), plain(states))

    figures = joint.measure(models, repeats=1)
    assert list(figures) == [str(rows) for rows in joint.ROWS]
    assert max(one["largest_difference_of_norms"] for one in figures.values()) < 1e-5
    assert "joint/apart" in joint.table(figures)

    decoding = joint.measure_engine(models, [2], new_tokens=3, repeats=1)
    assert decoding["2"]["rows_that_differ"] == 0
    assert "rows that differ" in joint.engine_table(decoding)


def test_peak_memory_holds_the_weights() -> None:
    figures = measure("tiny", "cpu", None, 2, 3, torch.get_num_threads())
    assert figures["peak_bytes"] > figures["weights_bytes"] > 0


def test_peak_memory_is_not_that_of_the_process_which_asks() -> None:
    ballast = b"1" * 2**30
    assert peak_memory("tiny", "cpu", None, 2, 3, 1)["peak_bytes"] < len(ballast)


NAMES = ("baseline", "caa", "mean_act", "cast", "segmented", "no_such_method")


@pytest.fixture(scope="module")
def timed(jobs: Jobs) -> dict[str, dict]:
    timed, failed = methods.side_by_side(jobs, NAMES, rows=3, new_tokens=4, repeats=2, note=lambda _: None)
    assert {len(steered.timings) for steered in timed.values()} == {2}
    return methods.figures(timed, failed, 4)


class TestMethods:
    def test_all_that_can_be_set_up_are_timed(self, timed: dict[str, dict]) -> None:
        for name in (methods.UNSTEERED, *NAMES[:-1]):
            assert timed[name]["decode_seconds"] > 0
            assert timed[name]["decode_speed_over_unsteered"] > 0
        assert timed[methods.UNSTEERED]["decode_speed_over_unsteered"] == 1

    def test_one_that_cannot_is_reported(self, timed: dict[str, dict]) -> None:
        assert "method=no_such_method does not exist" in timed["no_such_method"]["failed"]
        assert "no_such_method cannot be set up: ValueError" in methods.table(timed)

    def test_edits_act_where_there_are_any(self, timed: dict[str, dict]) -> None:
        sites = {name: timed[name]["sites"] for name in NAMES[:-1]}
        assert sites["baseline"] == timed["baseline"]["rows_changed"] == 0
        assert sites["mean_act"] == sites["segmented"] == 4
        assert timed["mean_act"]["rows_changed"] > 0

    def test_another_task_is_learnt_from_and_decoded(self, jobs: Jobs) -> None:
        task = ("task=behaviors", "task.behavior=sycophancy", "task.train_size=4")
        timed, failed = methods.side_by_side(
            jobs, ["caa"], rows=2, new_tokens=2, repeats=1, note=lambda _: None, task=task
        )
        decoded = [jobs.models.subject().tokenizer.decode(prompt) for prompt in timed["caa"].prompts]
        questions = [example.question for example in jobs.job("method=baseline", *task).task.examples("test")]
        assert failed == {}
        assert all(question in prompt for question, prompt in zip(questions[:2], decoded, strict=True))

    def test_every_yaml_is_a_method(self) -> None:
        names = methods.method_names()
        assert set(NAMES[:-1]) < set(names)
        assert names == sorted(set(names))

    def test_table_has_a_line_for_each(self, timed: dict[str, dict]) -> None:
        lines = methods.table(timed).splitlines()
        assert sum(line.startswith("| ") for line in lines) == 1 + len(timed) - 1


BASE = Point(prompts=2, trials=2, layers=4, new_tokens=3)
FACTORS = {"prompts": (1, 3), "layers": (0, 2), "distinct": (1, 4)}


class TestGrowth:
    def test_one_factor_changes_at_a_time(self) -> None:
        lines = growth.points(BASE, FACTORS)
        assert {name: [point.value(name) for point in line] for name, line in lines.items()} == {
            "prompts": [1, 2, 3],
            "layers": [0, 2, 4],
            "distinct": [1, 4],
        }
        assert all(BASE in line for line in lines.values())

    def test_usual_points_fill_the_batch(self) -> None:
        base = growth.usual_base(30)
        for line in growth.points(base, growth.usual_factors(30)).values():
            assert all(point.rows % growth.AT_ONCE == 0 for point in line)

    def test_every_point_is_timed(self, jobs: Jobs) -> None:
        timings = growth.measure(jobs, BASE, FACTORS, repeats=2, note=lambda _: None, at_once=3)
        figures = growth.figures(timings, BASE, FACTORS)
        assert [(row["factor"], row["rows"]) for row in figures[:3]] == [("prompts", 2), ("prompts", 4), ("prompts", 6)]
        assert figures[1]["seconds_over_base"] == 1
        assert all(row["seconds"] > 0 and len(row["repeats"]) == 2 for row in figures)
        assert len(growth.table(figures).splitlines()) == 2 + len(figures)
        one_set = timings[growth.points(BASE, FACTORS)["distinct"][0]][0].completions
        assert len(one_set) == 4
        assert one_set[0] == one_set[1]

    def test_without_layers_nothing_is_steered(self, jobs: Jobs) -> None:
        job = jobs.job("method=segmented", "search=per_prompt", "task=facts")
        bench, examples = jobs.workbench(job), questions(job, 2)
        edits = [growth._ready(bench, examples, Point(2, 2, layers, 3)).intervention.edits for layers in (0, 3)]
        assert [list(sites) for sites in edits] == [[], [Site(0), Site(1), Site(2)]]


class TestSearch:
    def test_parts_make_up_the_whole(self, jobs: Jobs) -> None:
        figures = search.measure(jobs, prompts=2, trials=3, new_tokens=4)
        assert figures["texts"] == 2 * (3 + 1)
        assert 0 < figures["tokens"] <= figures["texts"] * 4
        assert sum(part["share"] for part in figures["parts"].values()) == pytest.approx(1)
        assert all(part["seconds"] > 0 for part in figures["parts"].values())
        assert "2 prompts x 3 trials" in search.table(figures)

    def test_more_questions_than_there_are(self, jobs: Jobs) -> None:
        with pytest.raises(ValueError, match="wanted 100000"):
            search.measure(jobs, prompts=100_000, trials=1, new_tokens=2)

    def test_inner_parts_are_not_counted_twice(self) -> None:
        ledger = search.Ledger(_Ticks())
        with ledger.part("outer"), ledger.part("inner"):
            pass
        assert ledger.seconds == {"outer": 2.0, "inner": 1.0}


class _Ticks(Stopwatch):
    """One second passes between two looks."""

    def __init__(self) -> None:
        object.__setattr__(self, "ticks", itertools.count())

    def now(self) -> float:
        return float(next(self.ticks))


class TestTraining:
    def test_every_way_learns_the_same_from_the_same_texts(self, jobs: Jobs) -> None:
        task = ["task=axbench_likelihood", f"task.path={concepts_folder()}", "task.per_concept=4"]
        figures = training.measure(jobs, 2, 4, 1, [*task, "method.training.epochs=2"], note=lambda _: None)
        assert figures["difference"] < 1e-4
        assert figures["texts"] == 2 * (4 + 4)
        assert all(len(runs) == 1 for runs in figures["seconds"].values())
        assert len(training.table(figures).splitlines()) == 2 + len(training.WAYS) + 2

    def test_a_way_that_learns_something_else_is_an_error(self, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(training.PlainLearner, "before_step", lambda self: self.w.copy_(-self.w))
        task = ["task=axbench_likelihood", f"task.path={concepts_folder()}", "task.per_concept=4"]
        with pytest.raises(AssertionError, match="different directions"):
            training.measure(jobs, 2, 4, 1, task, note=lambda _: None)


class TestReport:
    def test_medians_and_ratios(self) -> None:
        fast = [Timing(10, 1.0, seconds, 0.5) for seconds in (2.0, 9.0, 3.0)]
        slow = [Timing(1, 1.0, seconds, 0.5) for seconds in (4.0, 9.0, 1.5)]
        assert median(fast, lambda run: run.decode) == 3.0
        assert ratio(fast, slow, lambda run: run.decode) == pytest.approx(10.0)
        assert (fast[0] + slow[0]).trials == 11
        assert fast[0].scored_in(2.0).total == 5.0

    def test_figures_and_table(self, timings: dict[str, list[Timing]], work: Work) -> None:
        figures = report.figures(timings, work.new_tokens)
        row = figures["ways"]["e"]
        middle = sorted(run.trials / run.generation for run in timings["e"])
        assert row["trials_per_second"] == pytest.approx(sum(middle) / 2)
        assert figures["rows_that_differ"]["d from c"] == 0.0
        lines = report.table(figures).splitlines()
        assert sum(line.startswith("| (") for line in lines) == len(WAYS) + len(figures["ratios"])

    def test_machine(self) -> None:
        assert report.machine("cpu")["torch"] == torch.__version__


class TestCommandLine:
    def test_writes_json_and_a_table(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        output = tmp_path / "bench.json"
        options = ["--model", "tiny", "--batch", "2", "--new-tokens", "3", "--repeats", "1", "--ways", "d", "e", "f"]
        assert main([*options, "--threads", "1", "--output", str(output)]) == 0
        saved = json.loads(output.read_text())
        assert set(saved["ways"]["2"]["ways"]) == {"d", "e", "f"}
        assert saved["settings"]["new_tokens"] == 3
        assert "| (e) / (f) | decoding |" in capsys.readouterr().out

    def test_the_other_tables(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(growth, "usual_base", lambda layers: Point(2, 1, layers, 2))
        monkeypatch.setattr(growth, "usual_factors", lambda _layers: {"trials": (2,)})
        output = tmp_path / "bench.json"
        options = ["--model", "tiny", "--batch", "2", "--new-tokens", "2", "--repeats", "1", "--threads", "1"]
        tables = ["--methods", "segmented", "--growth", "--search", "1", "2", "2", "--output", str(output)]
        assert main([*options, *tables]) == 0
        saved = json.loads(output.read_text())
        assert set(saved) == {"settings", "machine", "methods", "growth", "search"}
        assert set(saved["methods"]) == {"un-steered", "segmented"}
        shown = capsys.readouterr().out
        for line in ("| method | edited sites |", "| trials per prompt | 2 |", "| scorer's passes |"):
            assert line in shown

    def test_which_tables(self) -> None:
        assert asked_tables(arguments([])) == ["ways"]
        assert arguments([]).ways == list(WAYS)
        assert asked_tables(arguments(["--methods", "--memory"])) == ["methods", "memory"]
        assert asked_tables(arguments(["--ways", "--growth"])) == ["ways", "growth"]

    @pytest.mark.parametrize(
        "option",
        [["--search", "1", "0", "4"], ["--batch", "0"], ["--new-tokens", "1"], ["--ways", "z"], ["--clock", "sun"]],
    )
    def test_refuses(self, option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            arguments(option)
        assert option[0] in capsys.readouterr().err

    def test_models_by_name_and_by_folder(self) -> None:
        assert model_config("smollm2", "cpu", "bfloat16").dtype == "bfloat16"
        assert model_config("some/model", "cpu", None).kind == "hub"

    @pytest.mark.parametrize("name", sorted(set(names_of("model")) - {"hf", "gguf"}))
    def test_a_model_is_what_the_harness_makes_of_its_yaml(self, name: str) -> None:
        config, _ = composed([f"model={name}", "model.device=cpu"])
        assert model_config(name, "cpu", None) == instantiate(config.model, _convert_="all")

    def test_a_folder_on_the_harness_command_line(self) -> None:
        assert model_overrides("tiny", "cpu", "bfloat16") == ["model=tiny", "model.device=cpu", "model.dtype=bfloat16"]
        assert "model.id='some/model'" in model_overrides("some/model", "auto", None)


def test_the_harness_copy_leaves_the_plain_one_alone(models: Models) -> None:
    assert models.subject().network.model is not models.plain().model
    assert models.plain().model.config._attn_implementation == "sdpa"


NOT_THERE = (
    "accelerate bitsandbytes cmaes datasets gguf httpx hydra jaxtyping nltk omegaconf openai optuna plotly psutil"
    " scipy sklearn statsmodels tenacity vaderSentiment wandb"
)
"""What the harness depends on and ``pip install torch transformers`` does not bring."""
WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split()))  # importing a module that is None fails
runpy.run_module("harness.bench", run_name="__main__", alter_sys=True)
"""
SMALLEST_RUN = ["--model", "tiny", "--device", "cpu", "--batch", "2", "--new-tokens", "2", "--repeats", "1"]


def run(*command: str | Path, folder: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True)


class TestDoor:
    def test_help_lists_the_tables(self) -> None:
        out = run(sys.executable, "-c", WITHOUT, NOT_THERE, "--help")
        assert out.returncode == 0, out.stderr
        for table in TABLES:
            assert f"--{table}" in out.stdout

    def test_ways_run_on_torch_and_transformers_alone_and_other_tables_say_what_they_lack(self) -> None:
        out = run(sys.executable, "-c", WITHOUT, NOT_THERE, *SMALLEST_RUN, "--ways", "b", "e", "--methods")
        assert "| (e) / (b) | trials/s |" in out.stdout, out.stderr
        assert out.returncode == 1
        assert out.stderr.splitlines()[-1].startswith("--methods needs the harness with all of its dependencies: ")

    def test_an_installed_package_says_where_the_bench_is(self, tmp_path: Path) -> None:
        installed = tmp_path / "site-packages" / "harness" / "bench.py"
        installed.parent.mkdir(parents=True)
        shutil.copy(REPOSITORY / "harness" / "bench.py", installed)
        out = run(sys.executable, installed, "--help", folder=tmp_path)
        assert (out.returncode, out.stdout) == (1, "")
        (line,) = out.stderr.splitlines()
        assert "harness.bench runs in a checkout of the project's repository" in line

    @pytest.mark.slow
    @pytest.mark.timeout(1200)
    def test_a_bare_environment_is_enough(self, tmp_path: Path) -> None:
        python = tmp_path / "bare" / "bin" / "python"
        try:
            venv.create(tmp_path / "bare", with_pip=True, symlinks=True)
            versions = f"torch=={torch.__version__.partition('+')[0]}", f"transformers=={transformers.__version__}"
            installed = run(python, "-m", "pip", "install", "--quiet", "--no-compile", *versions)
            if installed.returncode:
                pytest.skip(f"pip cannot install torch and transformers here: {installed.stderr.splitlines()[-1]}")

            out = run(python, "-m", "harness.bench", *SMALLEST_RUN, "--memory", "--ways")
        finally:
            shutil.rmtree(tmp_path / "bare", ignore_errors=True)
        assert out.returncode == 0, out.stderr
        assert sum(line.startswith("| (") and ") / (" not in line for line in out.stdout.splitlines()) == len(WAYS)
        assert "64 rows x 128 tokens: peak" in out.stdout
