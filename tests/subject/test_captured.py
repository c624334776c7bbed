"""Texts that were read at the same sites before are not read again, and nothing else about a capture changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from engine_parts import one_thread  # noqa: F401

from harness.data import Demonstration, FitData
from harness.directions import AddVector
from harness.subject.captured import CaptureMemory, captures_of
from harness.subject.load import ModelConfig, load_model
from harness.subject.local import LocalSubject
from harness.subject.scorers import open_subject
from harness.subject.tally import Tally
from harness.types import Intervention, Site
from methods.token_vector import TokenVector

CONFIG = ModelConfig(kind="tiny", family="llama", dtype="float64", chat_template=False)
PROMPTS, COMPLETIONS = ["what is it", "one two three four", "why"], [" a b", " c", " d e f"]
SITES = (Site(0), Site(1))


@pytest.fixture
def subject() -> LocalSubject:
    opened = open_subject(load_model(CONFIG))
    opened.forget_captures()
    return dataclasses.replace(opened, tally=Tally())


@pytest.fixture
def passes_run(subject: LocalSubject, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every pass through the first block."""
    block, _ = subject.network.blocks.module(Site(0))
    forward, rows = block.forward, list[int]()

    def counted(*args: torch.Tensor, **options: object) -> object:
        rows.append(len(args[0]))
        return forward(*args, **options)

    monkeypatch.setattr(block, "forward", counted)
    return rows


def pooled(subject: LocalSubject) -> list[torch.Tensor]:
    return list(subject.capture(PROMPTS, COMPLETIONS, SITES, tokens="completion").values())


def by_token(subject: LocalSubject) -> list[torch.Tensor]:
    chunks = list(subject.capture_tokens(PROMPTS, COMPLETIONS, SITES))
    return [part for c in chunks for part in (*c.states.values(), c.text, c.position, c.token)]


def next_token(subject: LocalSubject) -> list[torch.Tensor]:
    return [subject.next_token_logprobs([(5, 9, 13), (7, 7, 3, 8)])]


@pytest.mark.parametrize("read", [pooled, by_token, next_token])
def test_the_second_capture_runs_no_pass_and_gives_the_same(
    read: Callable, subject: LocalSubject, passes_run: list[int]
) -> None:
    first, once = read(subject), dataclasses.replace(subject.tally)
    assert passes_run
    passes_run.clear()

    second = read(subject)
    assert not passes_run
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert subject.tally.forward_tokens == 2 * once.forward_tokens > 0, "what a fit takes is counted each time"
    assert subject.tally.padding_tokens == 2 * once.padding_tokens

    subject.forget_prompts()
    subject.forget_captures()
    read(subject)
    assert passes_run


@pytest.mark.parametrize("read", [pooled, by_token, next_token])
def test_who_changes_a_capture_changes_no_other(read: Callable, subject: LocalSubject) -> None:
    before = [part.clone() for part in read(subject)]
    for _ in range(2):
        for part in read(subject):
            part.zero_()
    assert all(torch.equal(one, other) for one, other in zip(before, read(subject), strict=True))


def test_other_texts_sites_tokens_or_steering_are_captured_anew(subject: LocalSubject, passes_run: list[int]) -> None:
    pooled(subject)
    edit = AddVector(vector=torch.ones(3, subject.layout.width, dtype=torch.float64), tokens="all")
    steered = Intervention({Site(0): edit})
    others = [
        lambda: subject.capture(PROMPTS[::-1], COMPLETIONS, SITES, tokens="completion"),
        lambda: subject.capture(PROMPTS, COMPLETIONS, SITES[:1], tokens="completion"),
        lambda: subject.capture(PROMPTS, COMPLETIONS, SITES, tokens="all"),
        lambda: subject.capture(PROMPTS, COMPLETIONS, SITES, tokens="completion", pool="last"),
        lambda: subject.capture(PROMPTS, COMPLETIONS, SITES, tokens="completion", intervention=steered),
        lambda: subject.capture(PROMPTS, COMPLETIONS, SITES, tokens="completion", intervention=steered),
    ]
    for capture in others:
        passes_run.clear()
        capture()
        assert passes_run


def test_concepts_of_a_genre_read_its_plain_texts_once(subject: LocalSubject, passes_run: list[int]) -> None:
    plain = [Demonstration(f"say {word}", " well then", "", False, "") for word in ("a", "b", "c")]
    shown = []
    for group in ("first", "second", "third"):
        shown.append(Demonstration("tell me", f" about the {group} one", group, True, group))
        shown += [dataclasses.replace(text, concept=group, group=group) for text in plain]
    TokenVector(direction="mean_difference", layer=1).fit(subject, FitData(demonstrations=tuple(shown)))
    assert sum(passes_run) == 3 + len(plain)


def test_the_least_recently_used_are_given_up_first() -> None:
    memory, tally, cpu = CaptureMemory(most_bytes=3 * 40), Tally(), torch.device("cpu")
    computed: list[str] = []

    def read(key: str, *lengths: int) -> None:
        def compute() -> Iterator[dict[Site, torch.Tensor]]:
            computed.append(key)
            for length in lengths or (10,):
                yield {Site(0): torch.zeros(length)}

        assert [len(chunk[Site(0)]) for chunk in memory.recalled((key,), compute, tally, cpu)] == [*(lengths or (10,))]

    for key in ("a", "b", "c", "a", "d"):  # with "d" it is one too many: "b" was used least recently
        read(key)
    computed.clear()
    for key in ("a", "c", "d", "b"):
        read(key)
    assert computed == ["b"]

    for _ in range(2):
        read("larger than all", 20, 11, 1)
    assert computed == ["b", "larger than all", "larger than all"]
    read("d")
    assert computed[-1] != "d", "what is not kept displaces nothing"

    read("as large as all", 20, 10)
    read("as large as all", 20, 10)
    read("d")
    assert computed[3:] == ["as large as all", "d"]
    memory.forget()
    read("d")
    assert computed[-2:] == ["d", "d"]


def test_a_capture_that_was_not_read_to_its_end_is_not_kept(subject: LocalSubject, passes_run: list[int]) -> None:
    next(iter(subject.capture_tokens(PROMPTS, COMPLETIONS, SITES)))
    passes_run.clear()
    by_token(subject)
    assert passes_run


def test_models_do_not_share_what_they_keep(subject: LocalSubject) -> None:
    same_weights = open_subject(load_model(CONFIG))
    assert captures_of(subject.network) is not captures_of(same_weights.network)
    assert captures_of(subject.network) is captures_of(dataclasses.replace(subject, instruction="be brief").network)
