"""lm-evaluation-harness: un-steered, its own model and ours agree; steering shows; the command runs own tasks."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.steering import Intervention
from harness.subject.passes import Text, loglikelihood

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # the evaluation harness has warnings of its own

CHOICE = {
    "task": "tiny_choice",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "target_delimiter": " ",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
WRITTEN = {
    "task": "tiny_written",
    "dataset_path": "json",
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["e"], "max_gen_toks": 12, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two tasks over one file."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": f"What of {topic}?", "choices": ["it is good", "it is quite bad"], "label": place % 2}
        for place, topic in enumerate(("rain", "tea", "snow and ice", "bread", "a very long story"))
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for task in (CHOICE, WRITTEN):
        content = {**task, "dataset_kwargs": {"data_files": {"test": str(data)}}}
        (folder / f"{task['task']}.yaml").write_text(json.dumps(content))  # JSON is YAML
    return folder


def evaluated(model: Any, tasks: Path) -> dict[str, list[Any]]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    names = [str(CHOICE["task"]), str(WRITTEN["task"])]
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    evaluated = simple_evaluate(model, tasks=names, task_manager=manager, bootstrap_iters=0)
    assert evaluated is not None
    return {name: [sample["filtered_resps"] for sample in evaluated["samples"][name]] for name in names}


def test_unsteered_it_is_their_own_model(model, plain, tokenizer, tasks):
    from lm_eval.models.huggingface import HFLM

    from harness.bridges.lm_eval import HarnessLM

    ours = evaluated(HarnessLM(model), tasks)
    theirs = evaluated(HFLM(pretrained=plain, tokenizer=tokenizer, batch_size=2, max_length=1024), tasks)
    assert ours["tiny_written"] == theirs["tiny_written"]
    for own, other in zip(ours["tiny_choice"], theirs["tiny_choice"], strict=True):
        assert [greedy for _, greedy in own] == [greedy for _, greedy in other]
        assert [value for value, _ in own] == pytest.approx([value for value, _ in other], rel=1e-5)


def test_steering_changes_likelihoods_and_texts(model, vector, tasks):
    from harness.bridges.lm_eval import HarnessLM

    plain, steered = (evaluated(HarnessLM(model, steer), tasks) for steer in (None, vector.at(layer=1, strength=4)))
    assert plain["tiny_choice"] != steered["tiny_choice"]
    assert plain["tiny_written"] != steered["tiny_written"]
    assert evaluated(HarnessLM(model, vector.at(strength=0)), tasks) == plain


def test_the_command_takes_a_bundle(vector, tasks, tmp_path, capsys):
    from harness.bridges.lm_eval import main

    bundle = vector.at(layer=1, strength=4).save(tmp_path / "v.safetensors")
    options = ["--model", "tiny", "--tasks", "tiny_choice", "--include-path", str(tasks), "--limit", "3"]
    assert main([str(bundle), *options, "--out", str(tmp_path / "results.json")]) == 0
    assert "tiny_choice" in capsys.readouterr().out
    written = json.loads((tmp_path / "results.json").read_text())
    assert len(written["samples"]["tiny_choice"]) == 3
    assert main([str(tmp_path / "absent.safetensors"), *options]) == 2
    assert "bundle not found" in capsys.readouterr().err


def test_rolling_likelihoods_are_those_of_the_whole_text(model):
    from lm_eval.api.instance import Instance

    from harness.bridges.lm_eval import HarnessLM

    lm, text = HarnessLM(model), "some text"
    (total,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    whole = Text((lm.eot_token_id,), tuple(lm.tok_encode(text, add_special_tokens=False)))
    network, tally = model.subject.network, model.subject.tally
    (values,) = loglikelihood(network, [whole], Intervention(), tally)
    assert total == pytest.approx(float(values.sum()))
