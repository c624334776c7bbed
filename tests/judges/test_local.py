"""The local judge on tiny models: probabilities that do not hang on the batch, everything kept, nothing asked twice."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.judges.answers import AnswerReader
from harness.judges.local import LocalJudge
from harness.judges.prompts import RUBRICS
from harness.subject.load import Loaded, ModelConfig, load_model
from harness.subject.tiny import FAMILIES
from harness.types import Grading

ANSWERS = ["It is Paris.", "No idea.", "Lyon, or perhaps Nice, or a town that nobody has ever heard of.", "", "Paris"]


def config(family: str = "llama", **settings: object) -> ModelConfig:
    options = {"kind": "tiny", "family": family, "dtype": "float64", "chat_template": False} | settings
    return ModelConfig(**options)  # type: ignore[arg-type]


def gradings(rubric: str = "simpleqa") -> list[Grading]:
    return [Grading(rubric, "What is the capital of France?", "Paris", (), answer) for answer in ANSWERS]


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest) -> Loaded:
    """A tiny model of each family."""
    return load_model(config(request.param))


@pytest.mark.parametrize("shared", [0, 100, 600])
def test_shared_instructions_and_batches_change_no_log_probability(loaded: Loaded, shared: int) -> None:
    """The longest instructions are longer than the sliding windows of the tiny models."""
    reader = AnswerReader(loaded.model, loaded.tokenizer, chat=False)
    tokens = reader.tokens([("grade this " * 60)[:shared] + answer + " A, B or C?" for answer in ANSWERS])
    prefix = reader.prefix(tokens)
    assert (len(prefix.ids) if prefix else 0) in (shared, shared + 1), "the text, and the mark that begins it"
    alone = [reader.read([ids], ["A", "B", "C"])[0] for ids in tokens]
    for start, stop in ((0, 5), (0, 3), (3, 5), (4, 5)):  # one prefix serves batches of any size
        for reading, expected in zip(
            reader.read(tokens[start:stop], ["A", "B", "C"], prefix), alone[start:stop], strict=True
        ):
            assert reading is not None
            assert expected is not None
            assert reading == pytest.approx(expected, abs=1e-9)


def test_a_prefix_leaves_a_token_to_the_shortest_prompt_and_needs_two_prompts() -> None:
    loaded = load_model(config())
    reader = AnswerReader(loaded.model, loaded.tokenizer, chat=False)
    tokens = [[5, 6, 7], [5, 6, 7], [5, 6, 7, 8]]

    prefix = reader.prefix(tokens)
    assert prefix is not None
    assert list(prefix.ids) == [5, 6]
    same, again, _ = reader.read(tokens, ["A"], prefix)
    assert same == again == pytest.approx(reader.read(tokens[:1], ["A"])[0], abs=1e-9)

    assert reader.prefix(tokens[:1]) is None
    assert reader.prefix([[5], [5, 6]]) is None
    with pytest.raises(ValueError, match="does not begin with the prefix"):
        reader.read([[5, 7, 6]], ["A"], prefix)
    with pytest.raises(ValueError, match="does not begin with the prefix"):
        reader.read([[5, 6]], ["A"], prefix)


def test_prompts_too_long_for_the_context_do_not_count_for_the_prefix() -> None:
    loaded = load_model(config("gpt2"))
    reader = AnswerReader(loaded.model, loaded.tokenizer, chat=False)
    prefix = reader.prefix([[7] * 2000, [7] * 2001, [5, 6, 7], [5, 6, 8]])
    assert prefix is not None
    assert list(prefix.ids) == [5, 6]
    assert reader.prefix([[7] * 2000, [7] * 2001]) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"layer_types": ["full_attention", "linear_attention"] * 2},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        {"rope_parameters": {"full_attention": {"rope_type": "longrope", "rope_theta": 1e4}}},
    ],
)
def test_models_that_cannot_compute_a_prompt_in_two_parts_compute_it_whole(changed: dict[str, Any]) -> None:
    loaded = load_model(config())
    for name, value in changed.items():
        setattr(loaded.model.config, name, value)
    assert AnswerReader(loaded.model, loaded.tokenizer, chat=False).prefix([[5, 6, 7], [5, 6, 8]]) is None


@pytest.mark.real
def test_the_default_model_reads_the_same_from_a_shared_prefix(default_model: Loaded) -> None:
    reader = AnswerReader(default_model.model, default_model.tokenizer, chat=True)
    tokens = reader.tokens([f"{'Grade strictly. ' * 20}\nAnswer: {answer}\nA, B or C?" for answer in ANSWERS])
    prefix = reader.prefix(tokens)
    assert prefix is not None
    assert len(prefix.ids) > 60
    for ids, reading in zip(tokens, reader.read(tokens, ["A", "B", "C"], prefix), strict=True):
        assert reading == pytest.approx(reader.read([ids], ["A", "B", "C"])[0], abs=1e-4)


def test_log_probabilities_are_those_of_a_plain_forward_pass() -> None:
    loaded = load_model(config())
    reader = AnswerReader(loaded.model, loaded.tokenizer, chat=False)
    (reading,) = reader.read(reader.tokens(["Say A or B."]), ["A", "B"])
    ids = loaded.tokenizer("Say A or B.\nGrade:", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logprobs_V = loaded.model(ids).logits[0, -1].float().log_softmax(-1)
    assert reading is not None
    for answer, value in reading.items():
        tokens = {loaded.tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in (answer, f" {answer}")}
        assert value == pytest.approx(logprobs_V[sorted(tokens)].logsumexp(0).item(), abs=1e-6)


def roomy(chosen: ModelConfig) -> Loaded:
    """The tiny model reads bytes, so that the real prompts are longer than its context; rotary positions go on."""
    loaded = load_model(chosen)
    loaded.model.config.max_position_embeddings = 8192
    return loaded


def judge_at(path: Path, **settings: object) -> LocalJudge:
    options = {"cache": str(path / "c.sqlite"), "load": roomy} | settings
    return LocalJudge(model=config(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("rubric", RUBRICS)
def test_every_reply_parses_and_keeps_expected_score_and_entropy(tmp_path: Path, rubric: str) -> None:
    for verdict in judge_at(tmp_path, batch_size=2).grade(gradings(rubric)):
        shares = verdict.details["probabilities"]
        assert list(shares) == list(RUBRICS[rubric].answers.values())
        assert sum(shares.values()) == pytest.approx(1)
        assert verdict.value == max(shares, key=shares.get)
        assert verdict.entropy == pytest.approx(-sum(p * math.log(p) for p in shares.values()))
        assert 0 < verdict.details["mass"] <= 1
        assert verdict.details["prompt_hash"] == RUBRICS[rubric].hash
        if RUBRICS[rubric].numeric:
            assert verdict.expected == pytest.approx(sum(int(score) * p for score, p in shares.items()))


def test_a_scoring_computes_the_shared_instructions_once(tmp_path: Path) -> None:
    fed: list[int] = []

    def counting(chosen: ModelConfig) -> Loaded:
        loaded = roomy(chosen)
        loaded.model.register_forward_pre_hook(
            lambda _, args, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        return loaded

    whole = judge_at(tmp_path, batch_size=2)
    expected = whole.grade(gradings())
    judge = judge_at(tmp_path, batch_size=2, cache=str(tmp_path / "other.sqlite"), load=counting)
    verdicts = judge.grade(gradings())
    instructions, shared, *batches = fed
    assert len(batches) == 3
    assert instructions + shared > 4 * max(batches), "what all share is fed for one row, and to no batch"
    assert [verdict.raw for verdict in verdicts] == [verdict.raw for verdict in expected]


def test_rounds_of_a_search_share_the_instructions_of_a_rubric(tmp_path: Path) -> None:
    """A later round, and a single grading, feed what follows the instructions; verdicts are those of a fresh judge."""
    fed: list[int] = []

    def counting(chosen: ModelConfig) -> Loaded:
        loaded = roomy(chosen)
        loaded.model.register_forward_pre_hook(
            lambda _, args, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        return loaded

    judge = judge_at(tmp_path, load=counting)
    judge.grade(gradings()[:2])
    instructions, first_round = fed[0], sum(fed[1:])
    assert instructions > 2 * first_round / 3
    for number, asked in enumerate((gradings()[2:4], gradings()[4:])):
        fed.clear()
        verdicts = judge.grade(asked)
        assert sum(fed) < instructions, "the instructions are not fed again"
        alone = judge_at(tmp_path, cache=str(tmp_path / f"alone-{number}.sqlite")).grade(asked)
        for verdict, expected in zip(verdicts, alone, strict=True):
            assert verdict.value == expected.value
            assert verdict.details["probabilities"] == pytest.approx(expected.details["probabilities"], abs=1e-9)

    fed.clear()
    judge.grade([Grading("quality", "Who wrote it?", "Lem", (), answer) for answer in ("Lem.", "She.")])
    assert sum(fed) > instructions / 2, "another rubric has instructions of its own"


def test_a_second_scoring_does_not_even_load_the_model(tmp_path: Path) -> None:
    first = judge_at(tmp_path)
    verdicts = first.grade(gradings() * 2)
    assert first.usage.calls == len(ANSWERS)

    def refuse(_: ModelConfig) -> Loaded:
        raise AssertionError("the model was loaded for replies that are all cached")

    second = judge_at(tmp_path, load=refuse)
    assert [v.value for v in second.grade(gradings() * 2)] == [v.value for v in verdicts]
    assert (second.usage.calls, second.usage.cached) == (0, 2 * len(ANSWERS))


def test_a_prompt_longer_than_the_context_is_unscored_and_the_others_are_not(tmp_path: Path) -> None:
    long = Grading("simpleqa", "Who?", "Ann", (), "word " * 8192)
    verdicts = judge_at(tmp_path).grade([*gradings()[:2], long])
    assert [verdict.value is None for verdict in verdicts] == [False, False, True]
    assert "longer than the judge's context" in verdicts[2].reason


def test_answers_that_share_a_token_are_refused() -> None:
    loaded = load_model(config())
    with pytest.raises(ValueError, match="tokens of their own"):
        AnswerReader(loaded.model, loaded.tokenizer, chat=False).read([[5]], ["A", "BA"])


def test_identity_tells_weights_and_the_way_they_are_run() -> None:
    one, other = LocalJudge(model=config()), LocalJudge(model=config(dtype="float32"))
    assert one.identity != other.identity
    assert "tiny-llama" in one.identity
    with pytest.raises(ValueError, match="batch_size must be above 0"):
        LocalJudge(model=config(), batch_size=0)
