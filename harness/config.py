"""Composing configurations, which jobs they ask for, and Hydra's complaints in one line each."""

from __future__ import annotations

import difflib
import importlib.util
import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib import resources
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

WRONG_JOBS = "jobs must be a list of lists of overrides, e.g. jobs=[[method=baseline],[method=caa]], got {}"
_UNSTEERED = ("baseline", "prompting")
_NOTHING_TO_SHUFFLE = ("actadd",)
"""Methods that are fed neither data nor answers."""
_STEERED_CONTROLS = ("shuffled", "random")
"""Controls that run the method itself, on other data or in another direction."""
_PER_ITEM_CONTROLS = ("gold_in_prompt", "best_of_n")
"""Controls that are about the answers of the task's own items."""
LAUNCHER_EXTRAS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}
"""Launchers, and which extra of this package installs each of them."""
PLUGIN_LAUNCHERS = "hydra/launcher/plugin"
"""Group of the options that installed plug-ins give to their launchers; the YAMLs of launchers begin with them."""


def composed(overrides: Sequence[str]) -> tuple[DictConfig, Mapping[str, Any]]:
    """The configuration that overrides stand for, and which YAML each group was taken from.

    Raises:
        ValueError: there is no such option or choice.
    """
    refuse_odd_choices(overrides)
    try:
        config = _composed(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error, overrides)) from error
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return config, choices


def _composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration with Hydra's own node; its complaints are raised as they are."""
    running = GlobalHydra.instance().is_initialized()
    start = nullcontext() if running else initialize_config_module("conf", version_base="1.3")
    with start:
        return compose("config", list(overrides), return_hydra_config=True)


def plain_values(config: DictConfig) -> dict[str, Any]:
    """The whole configuration as plain values, without settings of evaluators that were not chosen.

    Raises:
        ValueError: a value is missing, refers to one that is not there, or is set for an evaluator that does not exist.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(explain(error)) from error
    assert isinstance(values, dict)
    plain: dict[str, Any] = {str(name): value for name, value in values.items()}
    return {**plain, "evaluator": _chosen_evaluators(plain["evaluator"])}


def _chosen_evaluators(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """The nodes of chosen evaluators. An experiment may hold settings for others, which then have no class."""
    if "_target_" in nodes:
        kind = str(nodes["_target_"])
        raise ValueError(
            f"the YAML of evaluator {kind.rpartition('.')[-1]} ({kind}) must begin with the line "
            "'# @package evaluator.NAME': without it, its settings belong to no name"
        )
    settings_only = {name for name, node in nodes.items() if "_target_" not in node}
    loader = GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else None
    known = loader.get_group_options("evaluator") if loader else _yaml_names("evaluator")
    if unknown := sorted(settings_only - set(known)):
        raise ValueError(f"evaluator={unknown[0]} does not exist; choose one of {', '.join(known)}")
    return {name: node for name, node in nodes.items() if name not in settings_only}


def _yaml_names(group: str) -> list[str]:
    folder = resources.files("conf").joinpath(group)
    return sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".yaml"))


def parsed_setting(override: str) -> tuple[list[str], Any]:
    """Where an override such as ``judge.model=NAME`` puts its value, and the value.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        parsed = OverridesParser.create().parse_override(override)
    except OverrideParseException as error:
        raise ValueError(explain(error)) from error
    return parsed.key_or_group.split("."), parsed.value()


def expand(config: DictConfig, choices: Mapping[str, Any], overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job: those of ``jobs`` added to the command line's, then the controls that fit.

    Args:
        config: the composed configuration.
        choices: which YAML each group was taken from.
        overrides: the command line.

    Raises:
        ValueError: ``jobs`` or ``controls`` is not what it should be.
    """
    jobs = _with_controls_and_jobs(config, choices, overrides)
    return [each for job in jobs for each in _with_side_effects(job)] if _measures_side_effects(config) else jobs


def is_several(config: DictConfig) -> bool:
    """Whether a configuration stands for several jobs."""
    return bool(config.jobs) or config.controls != "none" or _measures_side_effects(config)


def _measures_side_effects(config: DictConfig) -> bool:
    """Whether each job is to get a second one; that one itself gets none."""
    return config.side_effects.get("measure") is False


def _with_side_effects(job: list[str]) -> list[list[str]]:
    """The job, and with it the one that measures its side effects, if what it chooses holds for other prompts."""
    _config, choices = composed(job)
    own = [*(item for item in job if _key(item).partition(".")[0] != "side_effects"), "side_effects=none"]
    if choices["search"] == "per_prompt" or choices["control"] in _PER_ITEM_CONTROLS:
        return [own]
    return [own, [*job, "side_effects.measure=true"]]


def _with_controls_and_jobs(
    config: DictConfig, choices: Mapping[str, Any], overrides: Sequence[str]
) -> list[list[str]]:
    """The jobs of ``jobs`` and the controls that ``controls`` adds."""
    steered_controls = _steered_controls(config.controls)
    jobs = OmegaConf.to_container(config.jobs, resolve=True) if OmegaConf.is_config(config.jobs) else config.jobs
    if not isinstance(jobs, list) or not all(isinstance(job, list) for job in jobs):
        raise ValueError(WRONG_JOBS.format(jobs))
    # A job is one job: what it was expanded from does not stay in it, nor what an experiment's YAML lists.
    given = [item for item in overrides if _key(item) not in ("jobs", "controls")]
    if jobs and _value(given, "experiment"):
        given.append("jobs=[]")
    listed = [_joined(given, list(map(str, job))) for job in jobs] if jobs else [given]
    if config.controls == "none":
        return listed
    if _value(given, "experiment"):
        listed = [[*job, "controls=none"] for job in listed]
    steering = [job for job in listed if _steers(job, choices)]
    own = []
    for job in listed:
        own += [job, *(_with_controls(job, choices, steered_controls) if job in steering else ())]
    # Controls that do not steer belong to the automatic choice; a list names what it wants.
    unsteered = [job for item in steering for job in _unsteered_controls(item)] if config.controls == "auto" else []
    return _unique([*(job for item in steering for job in _baselines(item)), *own, *unsteered])


def _joined(overrides: Sequence[str], job: list[str]) -> list[str]:
    """What the command line sets wins over what a job sets; each job keeps its own method, search and control."""
    given = {_key(item) for item in overrides} - {"method", "search", "control"}
    return [*overrides, *(item for item in job if _key(item) not in given)]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _value(job: Sequence[str], group: str) -> str | None:
    values = [item.partition("=")[2] for item in job if _key(item) == group]
    return values[-1] if values else None


def _steers(job: Sequence[str], choices: Mapping[str, Any]) -> bool:
    method = _value(job, "method") or str(choices.get("method"))
    return method not in _UNSTEERED and _value(job, "control") in (None, "none")


def _steered_controls(controls: Any) -> tuple[str, ...]:
    """Names of the controls that each method is to get, of those that run the method itself.

    Raises:
        ValueError: ``controls`` is none of the choices.
    """
    if controls in ("none", "auto"):
        return _STEERED_CONTROLS
    names = OmegaConf.to_container(controls) if OmegaConf.is_list(controls) else controls
    if not isinstance(names, list) or not names or not set(map(str, names)) <= set(_STEERED_CONTROLS):
        choices = ", ".join(_STEERED_CONTROLS)
        raise ValueError(f"controls must be none or auto, or a list of {choices}, got {controls}")
    return tuple(names)


def _with_controls(job: list[str], choices: Mapping[str, Any], controls: Sequence[str]) -> list[list[str]]:
    method = _value(job, "method") or str(choices.get("method"))
    fitting = [each for each in controls if each != "shuffled" or method not in _NOTHING_TO_SHUFFLE]
    return [[*job, f"control={control}"] for control in fitting]


def _baselines(job: Sequence[str]) -> list[list[str]]:
    """The un-steered model on the job's own task, model and prompt."""
    return [[*_without_method(job), "method=baseline", "search=fixed"]]


def _without_method(job: Sequence[str]) -> list[str]:
    """What a job says about everything but method, search and control; an instruction stays, since it is the prompt."""
    kept = [item for item in job if re.split("[.@=]", _key(item))[0] not in ("method", "search", "control", "name")]
    instruction = _value(job, "method.instruction")
    return kept if instruction is None else [*kept, f"method.instruction={instruction}"]


def _unsteered_controls(job: Sequence[str]) -> list[list[str]]:
    """Controls that do not depend on the method, on the job's own task, model and prompt and with its budget."""
    kept = _without_method(job)
    budget = [item for item in job if _key(item) == "search.num_trials"]
    searched_for_all = _value(job, "search") in ("dev_split", "fixed", "equal_kl")
    best = [] if searched_for_all else [[*kept, "method=baseline", "search=per_prompt", *budget, "control=best_of_n"]]
    return [*best, [*kept, "method=baseline", "search=fixed", "control=gold_in_prompt"]]


def _unique(jobs: Sequence[list[str]]) -> list[list[str]]:
    return [list(job) for job in dict.fromkeys(tuple(job) for job in jobs)]


def swept(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep: every combination of the values that are separated by commas."""
    choices = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        name = override.get_key_element()
        values = override.sweep_string_iterator() if override.is_sweep_override() else ()
        choices.append([f"{name}={value}" for value in values] or [str(override.input_line)])
    return [list(job) for job in itertools.product(*choices)]


def is_own_option(override: str) -> bool:
    """Whether an override is about one search or one task, so that jobs with another one need not have the option."""
    return _key(override).startswith(("search.", "task."))


def fitting(job: Sequence[str], search_path: Sequence[str] = (), *, one_of_many: bool) -> list[str]:
    """The overrides of a job that compose.

    In a sweep, an option of one search says nothing to jobs with another search, and is left out of them:
    ``-m method=baseline,caa search.dev_examples=8`` concerns the jobs that search on dev items. Likewise an option of
    one task: ``-m task=facts,copa task.sample=true``.

    Args:
        job: its overrides.
        search_path: ``hydra.searchpath=…``, where further YAMLs lie.
        one_of_many: whether other jobs may have the option.

    Raises:
        ValueError: it does not compose; the message names the job if it is one of many.
    """
    kept = list(job)
    while True:
        try:
            composed([*kept, *search_path])
        except ValueError as error:
            unknown = re.match(r"there is no option (\S+)", str(error))
            without = [item for item in kept if unknown is None or not is_own_option(item) or _key(item) != unknown[1]]
            if one_of_many and len(without) < len(kept):
                kept = without
                continue
            if one_of_many:
                raise ValueError(f"job {' '.join(job)}: {error}") from error
            raise
        return kept


def refuse_odd_choices(overrides: Sequence[str]) -> None:
    """Raise ValueError for a list or a path where the name of one choice is due, and for one that is named twice.

    Hydra would merge the YAMLs of a list into one node without a word, and take a YAML of another group by its path.
    """
    groups = {folder.name for folder in resources.files("conf").iterdir() if folder.is_dir()} - {"evaluator"}
    for item in overrides:
        value = item.partition("=")[2].strip()
        if _key(item) in groups and value.startswith("[") and value.endswith("]"):
            choices = value.strip("[] ")
            raise ValueError(f"{_key(item)} takes one choice, got {value}; -m {_key(item)}={choices} runs each of them")
        if _key(item) in groups and ".." in value.split("/"):
            raise ValueError(f"{_key(item)} takes the name of one choice, got the path {value}")
        if _key(item) == "evaluator" and value.startswith("["):
            names = [name.strip() for name in value.strip("[]").split(",")]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"evaluator names {twice[0]} twice, got {value}")


def refuse_search_paths(overrides: Sequence[str]) -> None:
    """Raise ValueError for a place in ``hydra.searchpath`` that is not there: Hydra would pass over it in silence."""
    for item in overrides:
        if _key(item) != "hydra.searchpath":
            continue
        _path, places = parsed_setting(item)
        if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
            raise ValueError(f"hydra.searchpath must be a list such as [pkg://PACKAGE.conf], got {places!r}")
        for place in places:
            provider, _, path = place.partition("://")
            if provider == "file" and not Path(path).is_dir():
                raise ValueError(f"hydra.searchpath: there is no folder {path}")
            if provider == "pkg" and not _is_package(path):
                raise ValueError(f"hydra.searchpath: there is no package {path}")
            if provider not in ("file", "pkg"):
                raise ValueError(f"hydra.searchpath: places begin with pkg:// or file://, got {place!r}")


def _is_package(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def did_you_mean(name: str, overrides: Sequence[str]) -> str:
    """The option that somebody who wrote ``name`` may have meant, "" if none is close."""
    parent, _, last = name.rpartition(".")
    wrong = {name, *(".".join(name.split(".")[:depth]) for depth in range(2, name.count(".") + 1))}
    others = [item for item in overrides if _key(item) not in wrong]  # the choice of a group, as method=caa, stays
    try:
        config = _composed(others)  # not `composed`, which would ask here again what was meant
        node = OmegaConf.select(config, parent) if parent else config
    except Exception:  # the other overrides may be wrong too
        return ""
    close = difflib.get_close_matches(last, [str(key) for key in node] if isinstance(node, DictConfig) else [], 1)
    return ".".join(filter(None, (parent, *close))) if close else ""


_NOISE = ("full_key:", "object_type=", "reference_type=", "Config search path", "provider=", "See https://")


def explain(error: BaseException, overrides: Sequence[str] = ()) -> str:
    """One readable line for any error, Hydra's own of many lines included.

    Args:
        error: what went wrong.
        overrides: the command line, to find the option that was meant.
    """
    text = str(error) if str(error).strip() else type(error).__name__
    if error.__cause__ is not None and type(error).__module__.startswith(("hydra", "omegaconf")):
        text += f"\n{error.__cause__}"

    if unknown := re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text):
        return _unknown_choice(*unknown.groups(), text)
    if key := re.search(r"Key '[^']*' is not in struct\s+full_key: (\S+)", text):
        name = key[1]
        meant = did_you_mean(name, overrides)
        hint = f"did you mean {meant}?" if meant else "--cfg job lists all"
        return f"there is no option {name} ({hint}; a new entry of a table is added with +{name}=VALUE)"
    if ambiguous := re.search(r"Ambiguous value for argument '(.*)'", text):
        return f"{ambiguous[1]} gives several values: run each of them with -m, or write [a,b] for a list"

    # Anything else is told in the error's own words, without the lines that name no cause.
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    message = "; ".join(line for line in lines if not line.startswith(_NOISE)) or lines[0]
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override}: {message}"
    return message


def _unknown_choice(group: str, name: str, text: str) -> str:
    if group == PLUGIN_LAUNCHERS:
        return f"hydra/launcher={name} is not installed: pip install 'steering-harness[{LAUNCHER_EXTRAS[name]}]'"
    options = re.findall(r"^\t(\w\S*)$", text, re.MULTILINE)
    if not options:  # of a list of choices, Hydra only says which it could not load
        options = _yaml_names(group)
    return f"{group}={name} does not exist; choose one of {', '.join(options)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind if it has none."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__
