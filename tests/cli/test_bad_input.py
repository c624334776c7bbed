"""Every wrong setting is one line on stderr, no traceback, and a non-zero exit status, before anything heavy loads."""

import json
from pathlib import Path

import pytest
from child import Cli

METHODS = ("caa", "full_layer", "segmented", "baseline", "prompting")


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["method=nosuch"], ["method=nosuch", *METHODS]),
        (["evaluator=nosuch"], ["evaluator=nosuch", "token_overlap", "perplexity"]),
        (["evaluator=[token_overlap,nosuch]"], ["evaluator=nosuch", "token_overlap", "perplexity"]),
        (["-m", "task=copa,boolq", "task.nosuch=1"], ["no option task.nosuch in the task of any of 2 jobs"]),
        (["-m", "task=copa,boolq", "task.limt=1"], ["no option task.limt", "did you mean task.limit?"]),
        (["-m", "method=baseline,nosuch"], ["method=nosuch", *METHODS]),
        (["experiment=nosuch"], ["experiment=nosuch", "demo", "smoke"]),
        (["control=nosuch"], ["control=nosuch", "none", "shuffled", "random"]),
        (["task=nosuch"], ["task=nosuch", "facts"]),
        (["methd=caa"], ["no option methd"]),
        (["method=caa", "method.layr=3"], ["no option method.layr"]),
        (["--nosuch"], ["--nosuch"]),
        (["method=austeer", "method.k={nosuch: 1}"], ["no option method.k.nosuch"]),
        (["method=["], ["method=["]),
        (["method=baseline,caa"], ["method=baseline,caa", "-m"]),
        (["seed=x"], ["seed must be a whole number", "'x'"]),
        (["protocol.scored_trials=all"], ["protocol.scored_trials must be one of selected, best", "'all'"]),
        (["+expect.caa.overlap.value=0.2"], ["expect.caa.overlap lacks source, tolerance"]),
        (["prune_loops=maybe"], ["prune_loops must be true or false", "'maybe'"]),
        (["task.limit=many"], ["task.limit must be a whole number or null", "'many'"]),
        (["task.max_new_tokens=0"], ["task.max_new_tokens must be a whole number from 1 on", "got 0"]),
        (["search.num_trials=2.5"], ["search.num_trials must be a whole number", "2.5"]),
        (["search.num_trials=-1"], ["search.num_trials must be at least 1", "-1"]),
        (["search.sampler=nosuch"], ["search.sampler must be one of", "tpe", "'nosuch'"]),
        (["method=caa", "method.layer=99"], ["layer must be a whole number from 0 to 3", "99"]),
        (["method=caa", "method.layer=last"], ["method.layer must be a number or a range", "'last'"]),
        (["method=caa", "search=fixed", "+search.parameters.layr=1"], ["no parameter 'layr'", "layer, strength"]),
        (["task.path=absent.csv"], ["task.path=absent.csv does not exist"]),
        (["task.path=columns.jsonl"], ["columns.jsonl", "no column question", "found q, answer"]),
        (["task.path=empty.jsonl"], ["empty.jsonl holds no rows"]),
        (["model=hf", "model.id=./absent"], ["model folder not found: absent"]),
        (["model=gguf"], ["model.kind=gguf needs model.path"]),
        (["model=gguf", "model.path=absent.gguf"], ["model file not found: absent.gguf"]),
        (["model=hf", "model.id=some/model"], ["cannot fetch some/model from the hub", "give a local folder"]),
        (["model.family=nosuch"], ["model.family must be one of llama"]),
        (["model.id=some/model"], ["model.id=some/model is not used", "write model=hf"]),
        (["evaluator=simpleqa_rubric", "judge=openai"], ["no judge key", "OPENAI_API_KEY", "judge.base_url"]),
        (["evaluator=composite"], ["judge=match", "judge=openai", "judge.base_url", "judge=local"]),
        (["evaluator=choice"], ["choice scores options", "facts has none"]),
        (["name=a/b"], ["name must be a folder's name", "'a/b'"]),
        (["engine.max_rows=0"], ["engine.max_rows must be at least 1"]),
        (["controls=some"], ["controls must be none or auto"]),
        (["search=equal_kl", "method=baseline"], ["search=equal_kl needs a method with a strength", "Baseline"]),
        (["search=equal_kl", "search.target_kl=0"], ["search.target_kl must be above 0"]),
    ],
    ids=lambda value: " ".join(value) if value and "=" in value[0] else None,
)
def test_wrong_settings_are_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], messages: list[str]
) -> None:
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "columns.jsonl").write_text(json.dumps({"q": "Who?", "answer": "She"}) + "\n")
    (tmp_path / "empty.jsonl").write_text("")
    error = cli(*arguments).error
    for words in messages:
        assert words in error
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("generations.jsonl"))


def test_a_name_that_another_run_has_is_refused(cli: Cli) -> None:
    common = ("method=baseline", "evaluator=token_overlap", "task.limit=2", "name=mine")
    assert cli(*common).status == 0
    assert "holds another run" in cli(*common, "seed=1").error
