"""Every YAML composes with the root, builds, and states all that its class can be told; a new one is tried as it is."""

import dataclasses
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hydra.utils import get_class, instantiate
from laws.tiny_classifier import classifier_folder
from laws.yamls import CONF, class_of, names_of
from omegaconf import DictConfig, ListConfig, OmegaConf

from harness.build import build
from harness.config import expand
from harness.laws.axbench_data import write_folder
from harness.laws.lab import SHIPPED_TASKS, composed, job_for, job_of
from harness.laws.tiny_vector import vector_file
from harness.types import Evaluator, Method
from methods.dsas import DSAS
from methods.single_vector import SingleVector

GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and any(path.glob("*.yaml")))
NODES = [(group, name) for group in GROUPS for name in names_of(group)]
PLUG_INS = [(group, name) for group, name in NODES if group != "experiment"]
TINY = ("model=tiny", "tracking=none", "task.limit=4", "task.train_size=24")
ROOT_KEYS = {
    "num_trials",
    "contrasts", "control", "controls", "engine", "evaluator", "executor", "expect", "jobs", "judge", "lock_wait",
    "method", "model", "name", "objective", "out", "protocol", "prune_loops", "scorer", "search", "seed",
    "side_effects", "sweep", "task",
    "tracking",
}  # fmt: skip
"""Every option of the root. To add one is to add it for every run there will be: think twice, then add it here."""


def targets(node: Any, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every node that names a class, however deep."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        for key in node:
            if not OmegaConf.is_missing(node, key):
                yield from targets(node[key], f"{path}.{key}" if path else str(key))
    elif isinstance(node, ListConfig):
        for index, item in enumerate(node):
            yield from targets(item, f"{path}[{index}]")


def filled(config: DictConfig) -> DictConfig:
    """The configuration with a text wherever the user has to give a value."""
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, "given-by-the-user")
    return config


@cache
def choosing(group: str, name: str) -> tuple[DictConfig, Mapping[str, Any]]:
    """The root with one YAML chosen. Shared between tests, so nobody may change it."""
    files = {("model", "gguf"): "model.path=given-by-the-user", ("method", "vector"): f"method.path={vector_file()}"}
    given = [files[group, name]] if (group, name) in files else []
    return composed([f"{group}=[{name}]" if group == "evaluator" else f"{group}={name}", *given])


def settings_of(kind: type) -> set[str]:
    """What a class can be told in YAML: its fields, less those that only a caller in Python can fill."""
    fields = [item for item in dataclasses.fields(kind) if item.init]
    return {item.name for item in fields if not callable(item.default)}


def task_for(evaluator: str) -> list[str]:
    """A task with the items that an evaluator scores, and what else the evaluator takes."""
    own = {
        "final_number": ["task=gsm8k", "task.sample=true"],
        "refusal": ["task=harmful", "task.sample=true"],
        "refusal_judged": ["task=harmful", "task.sample=true"],
        "bbq": ["task=bbq", "task.sample=true"],
        "toxicity": ["task=facts", f"evaluator.toxicity.model={classifier_folder()}"],
    }
    shared = ["task=behaviors"] if class_of("evaluator", evaluator).choices else ["task=facts"]
    return own.get(evaluator, shared)


@pytest.mark.parametrize(("group", "name"), NODES)
class TestEveryYaml:
    def test_composes_and_every_class_can_be_imported(self, group: str, name: str) -> None:
        config, choices = choosing(group, name)
        if group != "evaluator":
            assert choices[group] == name
        classes = dict(targets(config))
        assert {path.split(".")[0] for path in classes} >= {"method", "search", "control", "task", "model"}
        for node in classes.values():
            assert isinstance(get_class(node._target_), type)
            # Values are checked against these, so they must be there at run time and not for type checkers alone.
            assert set(get_type_hints(get_class(node._target_))) >= settings_of(get_class(node._target_))

    def test_states_every_parameter_of_its_class(self, group: str, name: str) -> None:
        config, _ = choosing(group, name)
        for path, node in targets(config):
            stated, known = {str(key) for key in node} - {"_target_"}, settings_of(get_class(node._target_))
            assert stated == known, f"{path}: {known - stated} are not stated, {stated - known} do not exist"


@pytest.mark.parametrize(("group", "name"), PLUG_INS)
def test_every_node_becomes_an_object(group: str, name: str) -> None:
    config = filled(deepcopy(choosing(group, name)[0]))
    node = config.evaluator[name] if group == "evaluator" else config[group]
    made = instantiate(node, _convert_="all")
    assert type(made) is get_class(node._target_)


class TestControls:
    """Which jobs ``controls=auto`` adds."""

    def jobs(self, *overrides: str) -> list[list[str]]:
        config, choices = composed(["controls=auto", *overrides])
        return expand(config, choices, overrides)

    def test_unsteered_ones_have_the_budget_and_the_prompt_of_the_method(self) -> None:
        own = "'model.prompt_template=\"Q: {question}\"'"
        jobs = f"jobs=[['method=baseline','name=b'],['method=segmented',{own},'search.num_trials=5','+method.x=1']]"
        unsteered, *others = self.jobs(jobs)
        added = others[2:]
        assert [job[-1] for job in added] == [
            f"control={c}" for c in ("shuffled", "random", "best_of_n", "gold_in_prompt")
        ]

        assert unsteered[-2:] == ["method=baseline", "search=fixed"]
        assert 'model.prompt_template="Q: {question}"' in unsteered, "held against the method's own prompt"

        best, gold = (set(job) for job in added[2:])
        assert {"method=baseline", "search=per_prompt", "search.num_trials=5"} <= best
        assert "search.num_trials=5" not in gold
        for job in (best, gold):
            assert 'model.prompt_template="Q: {question}"' in job
            assert not {"name=b", "+method.x=1", "method=segmented"} & job

    def test_the_same_one_is_added_once(self) -> None:
        added = [job[-1] for job in self.jobs("jobs=[['method=segmented'],['method=full_layer']]")]
        assert added.count("control=best_of_n") == added.count("control=gold_in_prompt") == 1
        assert added.count("control=random") == 2

    def test_what_is_fed_nothing_is_not_shuffled_and_a_tuned_one_needs_no_samples(self) -> None:
        added = [job[-1] for job in self.jobs("jobs=[['method=actadd','search=dev_split']]")]
        assert added == ["search=fixed", "search=dev_split", "control=random", "control=gold_in_prompt"]

    def test_a_list_names_those_that_are_wanted(self) -> None:
        config, choices = composed(["jobs=[['method=baseline'],['method=caa'],['method=actadd']]"])
        config.controls = ["shuffled"]
        expanded = expand(config, choices, ["jobs=[['method=baseline'],['method=caa'],['method=actadd']]"])
        chosen = [(job[0], "control=shuffled" in job, "control=gold_in_prompt" in job) for job in expanded]
        steered = [("method=caa", False, False), ("method=caa", True, False), ("method=actadd", False, False)]
        assert [item for item in chosen if item[0] != "method=baseline"] == steered
        assert not any(choice[2] for choice in chosen)

    @pytest.mark.parametrize("controls", ["[]", "[best_of_n]", "shuffled", "{shuffled: 1}"])
    def test_what_is_no_choice_names_the_choices(self, controls: str) -> None:
        config, choices = composed([f"controls={controls}"])
        with pytest.raises(ValueError, match=r"controls must be none or auto, or a list of shuffled, random, got"):
            expand(config, choices, [])

    def test_a_job_says_nothing_of_the_sweep_that_it_was_expanded_from(self) -> None:
        expanded = self.jobs("jobs=[['method=caa']]")
        assert not [item for job in expanded for item in job if item.startswith(("jobs=", "controls="))]
        config, choices = composed(["experiment=demo"])
        (first, *_) = expand(config, choices, ["experiment=demo"])
        assert first == ["experiment=demo", "jobs=[]", "method=baseline"]

    def test_the_command_line_wins_over_a_job(self) -> None:
        config, choices = composed(["task.limit=3", "jobs=[['method=baseline','task.limit=9']]"])
        (job,) = expand(config, choices, ["task.limit=3", "method=caa"])
        assert job == ["task.limit=3", "method=caa", "method=baseline"]


class TestBuild:
    """The whole way that a command line goes, checks included, up to loading weights."""

    @pytest.mark.parametrize("name", names_of("method"))
    def test_methods(self, name: str) -> None:
        job = job_for(name)
        assert isinstance(job.method, Method)
        assert job.labels["method"] == name
        assert job.labels["search"] in names_of("search")

    @pytest.mark.parametrize("name", names_of("evaluator"))
    def test_evaluators(self, name: str, tmp_path: Path) -> None:
        judge = ["judge=local", "model@judge.model=tiny"]
        task = task_for(name)
        if class_of("evaluator", name).reads == "latents":
            task = ["task=axbench", f"task.path={write_folder(tmp_path)}"]
        if class_of("evaluator", name).compares_samples:
            task = [*task, "task.num_samples=2", "task.temperature=1"]
        job = job_of([*TINY, f"evaluator=[{name}]", *task, *judge])
        assert list(job.scoring.evaluators) == [name]
        assert isinstance(job.scoring.evaluators[name], Evaluator)

    @pytest.mark.parametrize("group", ["control", "search", "scorer", "tracking", "protocol"])
    def test_other_axes(self, group: str) -> None:
        for name in names_of(group):
            others = [item for item in TINY if not item.startswith(f"{group}=")]
            job = job_of([*others, "method=caa", f"{group}={name}"])
            place = job.scoring if group in ("scorer", "protocol") else job
            assert type(getattr(place, group)) is class_of(group, name)

    @pytest.mark.parametrize("name", SHIPPED_TASKS)
    def test_tasks_that_ship(self, name: str) -> None:
        job = job_of([*TINY, f"task={name}", "method=baseline"])
        assert job.task.name == name
        assert len(job.task.examples("test")) == 4

    def test_the_task_chooses_evaluators_and_objective_that_fit_it(self) -> None:
        job = job_of([*TINY, "task=behaviors", "method=caa"])
        assert list(job.scoring.evaluators) == ["choice"]
        assert {term.metric for term in job.objective.terms} == {"logit_difference"}

    @pytest.mark.parametrize("name", names_of("experiment"))
    def test_experiments(self, name: str) -> None:
        overrides = [f"experiment={name}"]
        config, choices = composed(overrides)
        jobs = expand(config, choices, overrides)
        assert jobs
        for overridden in jobs:
            job = [item for item in overridden if not item.startswith(("model=", "tracking="))]
            one, _ = composed([*job, "model=tiny"])
            for _, node in targets(filled(one)):
                get_class(node._target_)
            if get_class(one.task._target_) in {class_of("task", task) for task in SHIPPED_TASKS}:
                job_of([*job, "model=tiny", "tracking=none"])


class TestRoot:
    def test_options_are_frozen(self) -> None:
        config, _ = composed([])
        assert set(config) == ROOT_KEYS

    def test_only_the_root_holds_hydra_settings(self) -> None:
        assert [path.name for path in CONF.rglob("*.yaml") if "\nhydra:" in path.read_text()] == ["config.yaml"]

    def test_nothing_is_left_for_the_user_to_give(self) -> None:
        config, _ = composed([])
        assert not OmegaConf.missing_keys(config)

    def test_an_unknown_option_is_refused(self) -> None:
        with pytest.raises(Exception, match="metod"):
            composed(["metod=caa"])
        with pytest.raises(Exception, match="strenght"):
            composed(["method=caa", "method.strenght=1"])


class TestMethodsSearch:
    @pytest.mark.parametrize("name", names_of("method"))
    def test_exists(self, name: str) -> None:
        assert choosing("method", name)[1]["search"] in names_of("search")

    @pytest.mark.parametrize("search", names_of("search"))
    def test_gives_way_to_the_command_line(self, search: str) -> None:
        _, choices = composed([f"search={search}", "method=segmented"])
        assert choices["search"] == search

    def test_comes_with_the_method(self) -> None:
        assert composed(["method=caa"])[1]["search"] == "dev_split"
        assert composed(["method=segmented"])[1]["search"] == "per_prompt"
        assert composed(["method=baseline"])[1]["search"] == "fixed"


def test_a_field_of_all_models_is_stated_once() -> None:
    assert [path for path in CONF.rglob("*.yaml") if "blocks_path:" in path.read_text()] == [CONF / "model" / "hf.yaml"]


class TestEvaluators:
    def test_several_are_kept(self) -> None:
        config, _ = composed(["evaluator=[token_overlap,perplexity]"])
        assert set(config.evaluator) == {"token_overlap", "perplexity"}
        assert config.evaluator.token_overlap._target_ != config.evaluator.perplexity._target_

    def test_all_at_once(self) -> None:
        config, _ = composed([f"evaluator=[{','.join(names_of('evaluator'))}]"])
        assert set(config.evaluator) == set(names_of("evaluator"))

    @pytest.mark.parametrize("name", names_of("evaluator"))
    def test_says_where_it_belongs(self, name: str) -> None:
        first = (CONF / "evaluator" / f"{name}.yaml").read_text().splitlines()[0]
        assert first == f"# @package evaluator.{name}"

    def test_metrics_have_names_of_their_own(self) -> None:
        config, _ = composed([f"evaluator=[{','.join(names_of('evaluator'))}]"])
        built = [instantiate(node) for node in config.evaluator.values()]
        # Two ways to find the same thing out may share their metrics; a run chooses one of them.
        by_names = {tuple(metric.name for metric in evaluator.metrics) for evaluator in built}
        names = [name for names in by_names for name in names]
        assert len(names) == len(set(names))

    def test_two_that_report_one_metric_are_refused(self) -> None:
        with pytest.raises(ValueError, match="simpleqa_rubric and simpleqa_verified_rubric both report correct"):
            job_of([*TINY, "evaluator=[simpleqa_rubric,simpleqa_verified_rubric]"])


class TestInnerMethod:
    @pytest.mark.parametrize("inner", ["diffmean", "full_layer", "linear_act"])
    def test_any_method_goes_behind_the_gate(self, inner: str) -> None:
        job = job_for("dsas", f"method@method.inner={inner}")
        assert isinstance(job.method, DSAS)
        assert type(job.method.inner) is class_of("method", inner)

    def test_its_settings_can_be_changed(self) -> None:
        job = job_for("dsas", "method@method.inner=diffmean", "method.inner.layer=2", "method.inner.stream=mlp")
        assert isinstance(job.method, DSAS)
        assert isinstance(job.method.inner, SingleVector)
        assert (job.method.inner.layer, job.method.inner.stream) == (2, "mlp")

    def test_one_that_does_not_steer_is_refused(self) -> None:
        with pytest.raises(ValueError, match="must steer"):
            job_for("dsas", "method@method.inner=baseline")


def test_a_wrong_value_is_one_line_that_names_the_option() -> None:
    config, choices = composed([*TINY, "method=caa", "method.layer=99"])
    with pytest.raises(ValueError, match="layer must be a whole number from 0 to 3, got 99") as caught:
        build(config, choices)
    assert "\n" not in str(caught.value)
