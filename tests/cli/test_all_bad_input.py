"""Bad input of every kind for every command: one line on stderr, a non-zero status, no traceback, no end never reached.

Most inputs are generated: from the options of every YAML, from a list of broken files, from a list of broken runs.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from child import TINY, Finished
from omegaconf import OmegaConf

from harness.build import PARTS
from harness.config import composed
from harness.nodes import built
from harness.scoring import Evaluator

pytestmark = pytest.mark.timeout(1_800)
"""Each test starts a command a hundred times and more."""

AsModule = Callable[..., Finished]
RUN, SMALL = "harness", (*TINY, "task.limit=2", "evaluator=token_overlap")
CONF = Path(__file__).parents[2] / "conf"
GROUPS = ("method", "search", "control", "task", "model", "judge", "scorer", "objective", "protocol", "evaluator")
WRONG = "{no_such_entry: [[1]]}"
"""A value that no option takes."""


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@cache
def node_of(group: str, choice: str) -> dict[str, Any]:
    """What a YAML comes to, as plain values."""
    config = composed([f"{group}={choice}"])[0]
    node = config.evaluator[choice] if group == "evaluator" else config[group]
    return OmegaConf.to_container(node, resolve=True)  # pyright: ignore[reportReturnType]


def options_of(group: str, choice: str) -> list[tuple[str, Any]]:
    """Every option of a YAML with its value, as the command line names it."""
    place = f"evaluator.{choice}" if group == "evaluator" else group
    return [(f"{place}.{name}", value) for name, value in node_of(group, choice).items() if name != "_target_"]


def wrong_types() -> Iterator[list[str]]:
    """An option of each YAML, another in turn, with a value of the wrong type."""
    for number, (group, choice) in enumerate(product_of_choices()):
        options = options_of(group, choice)
        if options:
            option, _value = options[number % len(options)]
            yield [*SMALL, f"{group}={choice}", f"{option}={WRONG}"]


def not_numbers() -> Iterator[list[str]]:
    """A number of each YAML that has one, another in turn, that is none."""
    for number, (group, choice) in enumerate(product_of_choices()):
        numbers = [option for option, value in options_of(group, choice) if isinstance(value, float)]
        if numbers:
            bad = ("nan", "-inf", "inf")[number % 3]
            yield [*SMALL, f"{group}={choice}", f"{numbers[number % len(numbers)]}={bad}"]


def product_of_choices() -> list[tuple[str, str]]:
    return [(group, choice) for group in GROUPS for choice in choices(group)]


def unknown_choices() -> Iterator[list[str]]:
    """Names of YAMLs that are not there, lie elsewhere, or are several where one is due."""
    for group in (*GROUPS, "experiment", "tracking", "side_effects"):
        for bad in ("nosuch", "../model/tiny", "''", "[[1]]", "a/b", "3.5", "{a: 1}"):
            yield [*SMALL, f"{group}={bad}"]


ROOT = (
    "seed=-1", "seed=1.5", "seed=nan", "seed=[1]", "seed=null", "jobs=5", "jobs=[[1,2]]", "jobs=[a]", "jobs=[[nosuch]]",
    "jobs=[[method=nosuch]]", "jobs={a: 1}", "jobs=null", "jobs=[[method=../model/tiny]]", "jobs=[['method=[/b]']]",
    "out=5", "out=[a]", "out=null", "out=''", "out=http://x/y", "out=file", "out=/proc/nothing/here", "out=/dev/null",
    "name=..", "name=.", "name=a/b", "name=generations", "name=report.html", "name=''", "name=' '", "name='a\nb'",
    "sweep=..", "sweep=generations", "sweep=a/b", "lock_wait=-1", "lock_wait=nan", "lock_wait=inf", "lock_wait=x",
    "prune_loops=2", "prune_loops=null", "num_trials=0", "num_trials=-3", "num_trials=x", "num_trials=1.5",
    "num_trials=null", "num_trials=nan", "controls=5", "controls=[auto]", "controls=null", "contrasts=5",
    "contrasts=null", "expect=5", "expect=[1]", "expect=null", "+expect.a=5", "+expect.a.overlap=nan",
    "+expect.a.overlap={value: nan, tolerance: 1, source: x}", "engine=null", "engine=5", "engine.max_rows=-1",
    "engine.token_budget=0", "engine.token_budget=x", "engine.compile=3", "method=null", "task=null", "model=null",
    "search=null", "judge=null", "evaluator=null", "evaluator=[]", "evaluator=[token_overlap,token_overlap]",
    "tracking.mode=nosuch", "hydra.searchpath=5", "hydra.searchpath=[file:///nosuch]",
    "hydra.searchpath=[pkg://nosuch]",
    "hydra.searchpath=[nosuch]", "hydra/launcher=nosuch", "nosuch=1", "+nosuch=1", "~seed", "~task",
    "+method.nosuch=1", "=", "a", "seed", "seed=", "seed=${nosuch}", "seed=${oc.env:NO_SUCH}", "--nosuch", "--seed=1",
    "--config-name=nosuch", "--config-dir=nosuch", "--config-path=nosuch", "--experimental-rerun=file", "--cfg=nosuch",
    "method._target_=os.system", "method._target_=nosuch.Class", "method._target_=5",
    "method._target_=harness.data.Pair",
    "tracking._target_=builtins.open", "task._target_=torch.load", "+method.a._target_=os.system",
)  # fmt: skip

VALUES = (
    ["control=random", "method=baseline"], ["control=shuffled", "method=baseline"], ["control=random",
    "method=prompting"],
    ["control.temperature=-1"], ["control=best_of_n", "control.temperature=-1"], ["task.temperature=-0.5"],
    ["task.path=''"], ["task.limit=0"], ["task.limit=-1"], ["task.rows=5"], ["task.rows=3:1"], ["task.rows=a:b"],
    ["task.rows=100000:"], ["task.dev_size=-1"], ["task.train_size=-1"], ["task.seed=-1"], ["task.max_new_tokens=-1"],
    ["task.primary=nosuch"], ["model.prompt_template=x"], ["model.prompt_template='{question} {answer}'"],
    ["model.device=nosuch"], ["model.device=cuda:99"], ["model.dtype=int3"], ["model.blocks_path=no.such"],
    ["model.ranges={full: [2, 1]}"], ["model.ranges={full: [0, 1]}"], ["model.quantization=int3"],
    ["method=caa", "method.layer=-1"], ["method=caa", "method.layer=1.5"], ["method=caa", "method.instruction=5"],
    ["method=caa", "search=dev_split", "search.num_trials=0"], ["method=caa", "search.dev_examples=-1"],
    ["method=segmented", "objective=choice"], ["method=segmented", "objective=sentiment"], ["evaluator=choice"],
    ["task=behaviors", "evaluator=token_overlap"], ["search=per_prompt", "method=caa", "search.sampler=x"],
    ["judge=openai", "evaluator=simpleqa_rubric"], ["judge=openai", "evaluator=simpleqa_rubric", "judge.model=''"],
    ["judge=openai", "judge.model=''"], ["judge=openai", "judge.timeout=-1"], ["judge=openai", "judge.temperature=-1"],
    ["judge=openai", "judge.base_url=nosuch"], ["judge=openai", "judge.seed=x"],
    ["judge=openai", "judge.base_url=ftp://x/y"], ["judge=openai", "judge.key_variable='sk-a b'"],
    ["judge=openai", "judge.max_calls=-1"], ["judge=openai", "judge.max_cost=-1"], ["judge=openai",
    "judge.cache=/proc"],
    ["judge=openai", "judge.key_variable=''"], ["judge=openai", "judge.prices={x: 1}"],
    ["judge=table", "judge.path=nosuch", "evaluator=simpleqa_rubric"], ["judge=table", "evaluator=simpleqa_rubric"],
    ["protocol.subset=nosuch"], ["protocol=baseline_failures", "task=behaviors"], ["search=equal_kl",
    "method=baseline"],
    ["method=vector"], ["method=vector", "method.path=nosuch"], ["method=vector", "method.path=damaged.json"],
    ["method=caa", "+search.parameters.strength=inf"], ["method=caa", "search=fixed",
    "+search.parameters.strength=abc"],
    ["method=caa", "search=fixed", "+search.parameters.strength=nan"], ["method=caa", "search=fixed",
    "search.parameters=5"],
    ["method=caa", "search=fixed", "+search.parameters.nosuch=1"], ["method=caa", "task=sentiment", "task.limit=-2"],
    ["model=hf", "model.id=''"], ["model=hf", "model.id=5"], ["model=hf", "model.id=../.."], ["model=hf", "model.id=."],
    ["model=hf", "model.id=./model_damaged"], ["model=hf", "model.id=./model_empty"], ["model=hf", "model.id=file"],
    ["model=gguf", "model.path=damaged.json"], ["model=gguf", "model.path=."], ["model=gguf", "model.path=''"],
    ["model=gguf", "model.path=damaged.json", "model.sha256=x"], ["-m", "method=baseline,"], ["-m", "seed=1,-1"],
    ["-m", "seed=range(0)"], ["side_effects=standard", "side_effects.measure=5"], ["side_effects.measure=x"],
)  # fmt: skip

BROKEN = {
    "empty.jsonl": b"", "blank.jsonl": b"\n\n", "list.jsonl": b"[1]\n",
    "damaged.jsonl": b'{"question": "Who?", "answer": ',
    "number.jsonl": b"5\n", "zeros.jsonl": bytes(64), "latin.csv": "question,answer\nWer?,f\xfcr\n".encode("latin-1"),
    "columns.jsonl": b'{"q": "Who?", "a": "She"}\n', "nan.jsonl": b'{"question": NaN, "answer": NaN}\n',
    "half.jsonl": b'{"question": "\\ud800", "answer": "She"}\n', "nothing.jsonl": b'{"question": "", "answer": ""}\n',
    "null.jsonl": b'{"question": null, "answer": null}\n', "nested.jsonl": b'{"question": {"a": 1}, "answer": [1]}\n',
    "damaged.json": b'{"a": ', "deep.json": b'{"a":' * 3000, "number.json": b"5",
    "object.json": b'{"question": "Who?"}',
    "header.csv": b"question,answer\n", "short.csv": b"question,answer\nWho?\n", "image.png": b"\x89PNG\r\n",
    "file": b"x",
    "damaged.parquet": b"PAR1xxxx", "damaged.safetensors": bytes(8) + b"{", "yaml.yaml": b"a: [",
    "tag.yaml": b"!!python/x 5",
    "list.yaml": b"- 1\n", "split.jsonl": b'{"question": "Who?", "answer": "She", "split": "nosuch"}\n',
}  # fmt: skip
"""Files that hold nothing of use."""


def broken_paths() -> list[str]:
    return [
        *BROKEN,
        "absent.jsonl",
        ".",
        "a\nb.jsonl",
        "~nobody/x.csv",
        "file:///absent.csv",
        "ftp://x/y.csv",
        "/proc/self/mem",
    ]


def broken_tasks() -> Iterator[list[str]]:
    for name in broken_paths():
        yield [*SMALL, f"task.path='{name}'"]
    for task in choices("task"):
        for name in ("absent.jsonl", "columns.jsonl"):
            yield [*TINY, f"task={task}", f"task.path={name}"]


def imports() -> Iterator[list[str]]:
    columns = ["--question", "question", "--gold", "answer", "--text", "answer", "--method", "x"]
    for name in broken_paths():
        if name != "split.jsonl":  # wrong for a task only: columns that nobody names are not read here
            yield [name, "out=runs", *columns]
    good = ["good.jsonl", "out=runs", *columns]
    yield from (
        [], ["good.jsonl"], ["good.jsonl", "out=runs"], ["good.jsonl", "runs", *columns], ["good.jsonl", "out=",
        *columns],
        ["good.jsonl", "out=file", *columns], ["good.jsonl", "out=http://x/y", *columns], [*good, "--prompt", "x"],
        [*good, "--echoed"], [*good, "--parameters", "nosuch"], [*good, "--parameters", "answer"], [*good, "--grades",
        "x"],
        [*good, "--grades", "nosuch=answer"], [*good, "--grades", "simpleqa=nosuch"], [*good, "--access", "nosuch"],
        [*good, "--failures-of", "0"], [*good, "--failures-of", "x"], [*good, "--aliases", "answer"],
        [*good, "--nosuch"],
        ["good.jsonl", "out=runs", *columns[:-1], ""], ["good.jsonl", "out=runs", *columns[:-1], "a/b"],
        ["good.jsonl", "out=runs", *columns[:-1], "a\nb"],
    )  # fmt: skip


OTHERS: dict[str, list[list[str]]] = {
    "harness.compare": [
        [], ["absent"], ["file"], ["model_empty"], ["good", "--nosuch"], ["good", "--metric", "nosuch"],
        ["good", "--expect", "absent"],
        ["good", "--expect", "yaml.yaml"], ["good", "--expect", "tag.yaml"], ["good", "--expect", "list.yaml"],
        ["good", "--contrasts", "nosuch"], ["good", "--out", "/proc/nothing"], ["good", "--out", "file"], [""],
    ],
    "harness.score": [
        [], ["absent"], ["file"], ["evaluator=perplexity"], ["good", "evaluator=nosuch"], ["good", "seed=1"],
        ["good", "name=.."], ["good", "name=a/b"], ["good", "evaluator=choice"], ["good", "judge=nosuch"], ["good",
        "--nosuch"],
        ["good", "judge._target_=os.system"], ["good", "judge.nosuch=1"], ["good", "evaluator=[]"], ["good",
        "judge=[match]"],
        ["good", "name=''"], ["good", "judge.model=x"], ["good", "protocol.scored_trials=5"], ["good", "task.limit=1"],
    ],
    "harness.export": [
        [], ["absent"], ["file"], ["good"], ["good", "--to", "nosuch"], ["damaged.safetensors"], ["good", "--set", "x"],
        ["good", "--set", "strength=abc"], ["good", "--group", "nosuch"], ["good", "--out", "/proc/nothing"], ["."],
        ["good", "--nosuch"], ["good", "--to", "repeng"],
    ],
    "harness.doctor": [
        [*SMALL, *more] for more in (
            ["method=nosuch"], ["out=/proc/nothing"], ["out=file"], ["out=/dev/null/x"], ["task.max_new_tokens=5000"],
            ["task.path=absent.csv"], ["task.path=damaged.jsonl"], ["seed=-1"], ["model=hf",
            "model.id=./model_damaged"],
            ["jobs=[['method=[/b]']]"], ["jobs=5"], ["nosuch"], ["--nosuch"], ["control=random", "method=baseline"],
            ["judge=openai", "evaluator=simpleqa_rubric"], ["lock_wait=-1"], ["out=http://x/y"],
            ["task.path=half.jsonl"],
        )
    ],
    "harness.calibrate": [
        *([f"data={name}"] for name in BROKEN),
        ["data=absent"], ["judge=nosuch"], ["judge=match", "--into", "/proc/nothing"], ["judge=match", "--into",
        "list.yaml"],
        ["judge=match", "--into", "damaged.json"], ["judge=match", "--into", "."], ["judge=openai"], ["judge.nosuch=1"],
        ["--part", "nosuch"], ["--nosuch"], ["judge=[match,local]"], ["nosuch"], ["judge=match", "--into",
        "number.json"],
        ["judge=match", "--into", "number.jsonl"], ["judge=table"],
    ],
    "harness.bench": [
        ["--model", "nosuch"], ["--model", "tiny", "--device", "nosuch"], ["--model", "tiny", "--dtype", "int3"],
        ["--model", "model_damaged"], ["--model", "gguf"], ["--model", "tiny", "--write-work", "/nosuch/x"],
        ["--model", "tiny", "--methods", "nosuch"], ["--model", "tiny", "--output", "/proc/x"], ["--batch", "0"],
        ["--model", "tiny", "--device", "cuda:99"], ["--ways", "nosuch"], ["--new-tokens", "1"], ["--nosuch"],
        ["--model", "tiny", "--output", "."], ["--repeats", "x"], ["--gpu", "--shapes", "nosuch"], ["--search", "1"],
    ],
    "harness.dashboard": [
        [], ["--entity", "x"], ["--project", "x"], ["--entity", "x", "--project", "y", "--nosuch"],
        ["--entity", "x", "--project", "y"], ["--entity", "", "--project", ""],
        ["--entity", "x", "--project", "y", "--update", "nosuch"],
    ],
    "harness.write_prompts": [
        [], ["out.jsonl"], ["out.jsonl", "task=facts"], ["out.jsonl", "task=nosuch"], ["/proc/x", "task=concept"],
        ["damaged.jsonl", "task=concept"], ["out.jsonl", "--nosuch"],
    ],
}  # fmt: skip

DAMAGE: dict[str, Callable[[Path], Any]] = {
    **{
        f"run.json holds {text[:20]!r}": (lambda folder, text=text: (folder / "run.json").write_text(text))
        for text in ("", "[]", "null", "5", '"x"', "{}", "{", '{"a":' * 3000, "\0" * 64)
    },
    **{
        f"run.json: {name}={value!r}": (lambda folder, name=name, value=value: changed(folder, name, value))
        for name, value in (
            ("labels", "x"), ("generations", 5), ("generations", "../../absent"), ("estimates", {"overlap": 5}),
            ("receipt", {"sites": "x"}), ("provenance", [1]), ("config", [1]), ("key", 5), ("files", 5),
            ("entry", None),
            ("status", "nosuch"), ("access", 5), ("oracle", "x"), ("parameters", 5), ("cost", 5), ("subset", 5),
        )
    },
    **{
        f"scores.jsonl holds {text!r}": (lambda folder, text=text: (folder / "scores.jsonl").write_text(text))
        for text in ('{"a": 1}\n', "5\n", "{", '{"value": "high"}\n')
    },
    **{
        f"{name} lost": (lambda folder, name=name: (folder / name).unlink()) for name in ("run.json", "scores.jsonl")
    },
    "generations lost": lambda folder: shutil.rmtree(stored(folder)),
    "generations cut": lambda folder: cut(stored(folder) / "generations.jsonl"),
    "meta damaged": lambda folder: (stored(folder) / "meta.json").write_text("{"),
}  # fmt: skip
"""What may have happened to a run's folder."""


def changed(folder: Path, name: str, value: Any) -> None:
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {name: value}))


def stored(folder: Path) -> Path:
    return folder / json.loads((folder / "run.json").read_text())["generations"]


UNREAD = {("harness.compare", "meta damaged")}
"""What a command does not read: a comparison knows from run.json which generations were scored, and checks those."""


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.fixture(scope="session")
def good_run(tmp_path_factory: pytest.TempPathFactory, as_module: AsModule) -> Path:
    """A folder ``out`` that holds one finished run, named ``good``."""
    folder = tmp_path_factory.mktemp("good")
    done = as_module(RUN, *SMALL, "method=baseline", "search=fixed", "name=good", "out=.", folder=folder, seconds=300)
    assert done.status == 0, done.err
    return folder


@pytest.fixture
def place(tmp_path: Path, good_run: Path) -> Path:
    """A working directory with broken files, broken models, and a good run."""
    for name, content in BROKEN.items():
        (tmp_path / name).write_bytes(content)
    rows = [{"question": f"Who is {n}?", "answer": "She"} for n in range(4)]
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "model_empty").mkdir()
    (tmp_path / "model_damaged").mkdir()
    (tmp_path / "model_damaged" / "config.json").write_text("{")
    shutil.copytree(good_run, tmp_path, dirs_exist_ok=True)
    return tmp_path


def complaint(finished: Finished, module: str) -> str:
    """What is wrong with the way in which a command refused; "" if nothing is."""
    if finished.status == -9:
        return "hangs"
    if finished.status == 0:
        return f"succeeds: {finished.out[-200:]!r}"
    if "Traceback" in finished.out + finished.err:
        return f"traceback: {finished.err[-300:]!r}"
    if module == "harness.doctor" and finished.out.rstrip().splitlines()[-1].startswith("cannot run: "):
        return ""  # its finding is what it is for
    try:
        return "" if len(finished.error) > len("error: ") else "says nothing"
    except AssertionError as error:
        return str(error)


TALLY: list[str] = []
"""The command of each bad input so far."""


@pytest.fixture(scope="module", autouse=True)
def _counted(request: pytest.FixtureRequest) -> Iterator[None]:
    """Say at the end how many inputs were tried, and how long it took."""
    started = time.monotonic()
    yield
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    reporter.write_line(f"\n{len(TALLY)} bad inputs in {time.monotonic() - started:.0f} s")


def refuses(as_module: AsModule, place: Path, module: str, inputs: Iterable[Sequence[str]]) -> None:
    """Run a command on each input, as many at once as there are cores; report all that were not refused as is due."""

    def attempt(arguments: Sequence[str]) -> tuple[Sequence[str], str]:
        return arguments, complaint(as_module(module, *arguments, folder=place), module)

    complaints = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for arguments, wrong in pool.map(attempt, inputs):
            TALLY.append(module)
            if not wrong:
                continue
            complaints.append(f"{module} {' '.join(arguments)}\n    {wrong}")
            print(complaints[-1], flush=True)
    assert not complaints, f"{len(complaints)} are not refused in one line:\n" + "\n".join(complaints)


RUNS = {
    "wrong_types": wrong_types, "not_numbers": not_numbers, "unknown_choices": unknown_choices,
    "root": lambda: [[*SMALL, item] for item in ROOT], "values": lambda: [[*SMALL, *items] for items in VALUES],
    "broken_tasks": broken_tasks,
}  # fmt: skip


@pytest.mark.long
def test_no_option_of_any_yaml_takes_a_value_of_any_type() -> None:
    """All of them, without the command line, which asks the same function."""
    taken = []
    for group, choice in product_of_choices():
        node, kind = node_of(group, choice), Evaluator if group == "evaluator" else PARTS[group]
        for name in node:
            try:
                built({**node, name: {"no_such_entry": [[1]]}}, kind, group)
            except ValueError:
                continue
            taken.append(f"{group}={choice} {group}.{name}")
    assert not taken


@pytest.mark.long
@pytest.mark.parametrize("kind", RUNS)
def test_runs(as_module: AsModule, place: Path, kind: str) -> None:
    refuses(as_module, place, RUN, RUNS[kind]())


@pytest.mark.long
@pytest.mark.parametrize("module", [*OTHERS, "harness.import"])
def test_other_commands(as_module: AsModule, place: Path, module: str) -> None:
    refuses(as_module, place, module, OTHERS.get(module) or imports())


@pytest.mark.long
def test_they_are_many() -> None:
    count = sum(len(list(inputs())) for inputs in RUNS.values()) + sum(map(len, OTHERS.values())) + len(list(imports()))
    assert count + 3 * len(DAMAGE) >= 600


@pytest.mark.long
@pytest.mark.parametrize("module", ["harness.compare", "harness.score", "harness.export"])
def test_damaged_runs(as_module: AsModule, place: Path, module: str) -> None:
    complaints = []
    for name, damage in DAMAGE.items():
        shutil.rmtree(place / "runs", ignore_errors=True)
        shutil.copytree(place, place / "runs", ignore=lambda *_: set(BROKEN))
        damage(place / "runs" / "good")
        settings = ["evaluator=token_overlap"] if module == "harness.score" else []
        finished = as_module(module, "runs/good", *settings, folder=place)
        if (module, name) in UNREAD:
            assert finished.status == 0, finished.err
            continue
        TALLY.append(module)
        if wrong := complaint(finished, module):
            complaints.append(f"{module}: {name}\n    {wrong}")
            print(complaints[-1], flush=True)
    assert not complaints, f"{len(complaints)} are not refused in one line:\n" + "\n".join(complaints)
