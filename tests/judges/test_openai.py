"""The endpoint judge against a server that fails on demand: what each failure leads to."""

from __future__ import annotations

import asyncio
import email.utils
import json
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_server import Answer, Behaviour, FaultServer, serving

from harness import progress
from harness.judges.cache import Reply
from harness.judges.openai import OpenAIJudge
from harness.types import Grading


@pytest.fixture
def judge_for(tmp_path: Path) -> Iterator[Any]:
    """A function that starts a server with a behaviour and returns it with a judge of it."""
    opened = []

    def start(behaviour: Behaviour, **settings: Any) -> tuple[OpenAIJudge, FaultServer]:
        context = serving(behaviour)
        server = context.__enter__()
        opened.append(context)
        options = {"longest_wait": 0.02, "timeout": 20.0, "cache": str(tmp_path / "judges.sqlite")} | settings
        return OpenAIJudge(model="small", base_url=server.url, **options), server

    yield start
    for context in opened:
        context.__exit__(None, None, None)


def gradings(count: int, rubric: str = "simpleqa") -> list[Grading]:
    return [Grading(rubric, f"What is number {i}?", str(i), (), f"It is {i}.") for i in range(count)]


def always(answer: Answer) -> Behaviour:
    return lambda number, request: answer


def test_grades_in_order_with_everything_that_traces_a_score(judge_for: Any) -> None:
    def by_number(number: int, request: dict[str, Any]) -> Answer:
        return Answer("ABC"[int(request["messages"][0]["content"].split("number ")[1].split("?")[0]) % 3])

    judge, server = judge_for(by_number)
    verdicts = judge.grade(gradings(9))
    assert [verdict.value for verdict in verdicts] == ["CORRECT", "INCORRECT", "NOT_ATTEMPTED"] * 3
    details = verdicts[0].details
    assert details["judge"] == judge.identity
    assert "small" in judge.identity
    assert len(details["prompt_hash"]) == 8
    assert details["served_model"] == "small"
    assert details["completion_tokens"] == 2
    assert judge.usage.calls == len(server.requests) == 9
    assert judge.usage.completion_tokens == 18


def test_a_scale_keeps_its_expected_score(judge_for: Any) -> None:
    judge, _ = judge_for(always(Answer("Score: 4/5")))
    verdict = judge.grade(gradings(1, "quality"))[0]
    assert (verdict.value, verdict.expected) == ("4", 4.0)


def test_a_second_scoring_costs_nothing(judge_for: Any) -> None:
    judge, server = judge_for(always(Answer("B")))
    first = judge.grade(gradings(5))
    again = judge.grade(gradings(5))
    assert [v.value for v in first] == [v.value for v in again]
    assert len(server.requests) == 5
    assert judge.usage.cached == 5
    assert again[0].details["cached"]


def test_equal_gradings_are_asked_once(judge_for: Any) -> None:
    judge, server = judge_for(always(Answer("A")))
    assert len(judge.grade(gradings(2) * 10)) == 20
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Answer(""), "empty"),
        (Answer('{"grade": "A'), "no single grade"),
        (Answer("D"), "no single grade"),
        (Answer("Well, A or B, hard to say."), "no single grade"),
        (Answer("NOT CORRECT"), "no single grade"),
        (Answer(body=b'{"id": "reply", "choices": [{"mess'), ""),
        (Answer(body=b'{"id": "reply", "choices": []}'), "no chat completion"),
        (Answer(body=b"<html>busy</html>", headers={"Content-Type": "text/html"}), "no chat completion"),
    ],
)
def test_a_bad_reply_is_unscored_and_kept_raw(judge_for: Any, reply: Answer, reason: str) -> None:
    judge, _ = judge_for(always(reply), attempts=2)
    verdict = judge.grade(gradings(1))[0]
    assert verdict.value is None
    assert reason in verdict.reason
    assert verdict.reason
    if reply.body is None:
        assert verdict.raw == reply.text


def test_a_chatty_reply_is_no_grade_and_asked_for_again(judge_for: Any) -> None:
    judge, server = judge_for(always(Answer("This is hardly CORRECT.")))
    assert judge.grade(gradings(1))[0].value is None
    server.behaviour = always(Answer("B"))
    assert judge.grade(gradings(1))[0].value == "INCORRECT", "a reply without a grade is not kept"
    assert judge.grade(gradings(1))[0].details["cached"]
    assert len(server.requests) == 2


def test_replies_without_a_grade_of_older_versions_are_forgotten(judge_for: Any) -> None:
    judge, server = judge_for(always(Answer("B")))
    judge._replies.keep(judge._call(gradings(1)[0]), Reply("It is far from CORRECT", {}))
    assert judge.grade(gradings(1))[0].value == "INCORRECT"
    assert len(server.requests) == 1
    assert judge.grade(gradings(1))[0].details["cached"]


def test_what_a_content_filter_left_is_no_grade(judge_for: Any) -> None:
    judge, _ = judge_for(always(Answer("A", finish="content_filter")))
    verdict = judge.grade(gradings(1))[0]
    assert verdict.value is None
    assert "content filter" in verdict.reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(message=None), "no text as the model's message but None"),
        (Answer(content=[{"type": "text", "text": "A"}]), "no text as the model's message"),
        (Answer(content={"text": "A"}), "no text as the model's message"),
        (Answer(content=5), "no text as the model's message"),
        (Answer(body=b'{"id": "r", "choices": [null]}'), "no text as the model's message"),
        (Answer(body=b'{"id": "r", "choices": 3}'), "no chat completion"),
        (Answer(body=b"null"), "no chat completion"),
        (Answer(body=b"[1, 2]"), "no chat completion"),
    ],
)
def test_a_reply_of_another_shape_leaves_that_answer_unscored(judge_for: Any, answer: Answer, reason: str) -> None:
    def odd_third(number: int, request: dict[str, Any]) -> Answer:
        return answer if "number 2?" in request["messages"][0]["content"] else Answer("A")

    judge, _ = judge_for(odd_third, attempts=2)
    verdicts = judge.grade(gradings(4))
    assert [verdict.value for verdict in verdicts] == ["CORRECT", "CORRECT", None, "CORRECT"]
    assert reason in verdicts[2].reason


@pytest.mark.parametrize("served", ["other", "small-instruct", "smaller", "big/small-2"])
def test_another_model_than_asked_for_is_an_error(judge_for: Any, served: str) -> None:
    judge, server = judge_for(always(Answer("A", served=served)), concurrency=1)
    with pytest.raises(LookupError, match=f"asked for the model small, but {served} answered"):
        judge.grade(gradings(5))
    assert len(server.requests) == 1
    with pytest.raises(LookupError, match=r"judge\.served_as"):
        judge.preflight()


@pytest.mark.parametrize("served", ["SMALL", "small-2025-04-14", "small:latest", "vendor/small", "small-latest"])
def test_dated_and_tagged_names_are_the_same_model(judge_for: Any, served: str) -> None:
    judge, _ = judge_for(always(Answer("A", served=served)))
    assert judge.grade(gradings(1))[0].details["served_model"] == served


def test_a_server_with_names_of_its_own_can_be_declared(judge_for: Any) -> None:
    judge, _ = judge_for(always(Answer("A", served="models/weights.gguf")), served_as="models/weights.gguf")
    assert judge.grade(gradings(1))[0].value == "CORRECT"


@pytest.mark.parametrize("asked", ["soon", "", "Fri, 99 Foo 2026", "NaN:NaN"])
def test_a_retry_after_that_means_nothing_is_a_plain_retry(judge_for: Any, asked: str) -> None:
    busy = Answer("slow down", status=429, headers={"Retry-After": asked})
    judge, server = judge_for(lambda n, _: busy if n == 0 else Answer("A"))
    assert judge.grade(gradings(1))[0].value == "CORRECT"
    assert len(server.requests) == 2
    server.behaviour = always(busy)
    assert "HTTP 429: slow down" in judge.grade(gradings(2))[1].reason


def test_the_identity_holds_every_setting_that_decides_a_reply() -> None:
    settings = [{"temperature": 1.0}, {"seed": 1}, {"max_tokens": 8}, {"structured": "never"}, {"model": "big"}, {}]
    identities = [OpenAIJudge(**{"model": "small", **setting}).identity for setting in settings]
    assert len(set(identities)) == len(settings)


def test_a_call_that_timed_out_may_have_cost_something(judge_for: Any) -> None:
    never = threading.Event()
    prices = {"small": {"input": 1.0, "output": 1.0}}
    judge, _ = judge_for(lambda n, _: Answer(hold=never) if n == 0 else Answer("B"), timeout=0.3, prices=prices)
    assert judge.grade(gradings(1))[0].value == "INCORRECT"
    never.set()
    assert judge.usage.possible_cost > 0
    assert judge.usage.cost is not None
    assert judge.usage.cost > 0
    assert "for calls without an answer" in str(judge.usage)


def test_what_timed_out_calls_may_have_cost_counts_towards_the_limit(judge_for: Any) -> None:
    prices = {"small": {"input": 10.0, "output": 10.0}}
    judge, server = judge_for(
        always(Answer(drop=True)), max_cost=0.02, prices=prices, attempts=1, concurrency=1, give_up_after=99
    )
    verdicts = judge.grade(gradings(60))
    assert len(server.requests) < 10
    assert "stopped at max_cost=0.02" in verdicts[-1].reason
    assert judge.usage.cost == 0


def test_a_reply_that_cannot_be_kept_leaves_its_answer_unscored(judge_for: Any) -> None:
    judge, server = judge_for(always(Answer("A")), concurrency=1)
    judge.grade(gradings(1))
    full = sqlite3.connect(judge.cache)
    full.execute("CREATE TRIGGER full BEFORE INSERT ON replies BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    full.close()
    verdicts = judge.grade(gradings(3))
    assert [verdict.value for verdict in verdicts] == ["CORRECT", None, None]
    assert "could not be kept, disk is full" in verdicts[1].reason
    assert len(server.requests) == 3


def test_a_cache_that_cannot_be_opened_leaves_all_unscored_without_a_call(judge_for: Any, tmp_path: Path) -> None:
    (tmp_path / "no-database").write_bytes(b"this is no SQLite file, and long enough to be looked at" * 20)
    judge, server = judge_for(always(Answer("A")), cache=str(tmp_path / "no-database"))
    verdicts = judge.grade(gradings(2))
    assert all(verdict.value is None and "cannot be used" in verdict.reason for verdict in verdicts)
    assert not server.requests


@pytest.mark.parametrize("status", [429, 500, 503])
def test_errors_that_pass_are_tried_again(judge_for: Any, status: int) -> None:
    judge, server = judge_for(lambda n, _: Answer("busy", status=status) if n < 2 else Answer("A"))
    assert judge.grade(gradings(1))[0].value == "CORRECT"
    assert len(server.requests) == judge.usage.calls == 3


def test_truncated_bodies_and_dropped_connections_are_tried_again(judge_for: Any) -> None:
    faults = [Answer(body=b'{"id": "reply", "cho'), Answer(drop=True)]
    judge, server = judge_for(lambda n, _: faults[n] if n < 2 else Answer("C"))
    assert judge.grade(gradings(1))[0].value == "NOT_ATTEMPTED"
    assert len(server.requests) == 3


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(judge_for: Any, as_date: bool) -> None:
    times: list[float] = []

    def once_busy(number: int, request: dict[str, Any]) -> Answer:
        times.append(time.time())
        asked = email.utils.formatdate(times[0] + 2, usegmt=True) if as_date else "1"
        return Answer("slow down", status=429, headers={"Retry-After": asked}) if number == 0 else Answer("A")

    judge, _ = judge_for(once_busy, longest_wait=5.0)
    assert judge.grade(gradings(1))[0].value == "CORRECT"
    assert times[1] - times[0] >= 0.95


def test_a_server_that_asks_to_wait_too_long_is_not_asked_again(judge_for: Any) -> None:
    judge, server = judge_for(always(Answer("come back", status=429, headers={"Retry-After": "3600"})))
    assert "come back (asks to wait 3600 s)" in judge.grade(gradings(1))[0].reason
    assert len(server.requests) == 1


def test_preflight_calls_once_for_the_same_settings(judge_for: Any) -> None:
    judge, server = judge_for(always(Answer("A")))
    judge.preflight()
    judge.preflight()
    assert len(server.requests) == judge.usage.calls == 1


def test_a_hanging_call_says_so_times_out_and_is_tried_again(
    judge_for: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "HEARTBEAT_SECONDS", 0.05)
    never = threading.Event()
    judge, server = judge_for(lambda n, _: Answer(hold=never) if n == 0 else Answer("B"), timeout=0.3)
    assert judge.grade(gradings(1))[0].value == "INCORRECT"
    assert len(server.requests) == 2
    assert re.search(r"judging, .* so far", capsys.readouterr().err)
    never.set()


def test_a_server_that_stays_down_leaves_all_unscored_without_trying_each(judge_for: Any) -> None:
    judge, server = judge_for(always(Answer("out of order", status=500)), attempts=2, give_up_after=3, concurrency=1)
    verdicts = judge.grade(gradings(20))
    assert all(verdict.value is None for verdict in verdicts)
    assert "out of order" in verdicts[0].reason
    assert "given up after 3 failures" in verdicts[-1].reason
    assert len(server.requests) == 6


def test_nothing_listens(tmp_path: Path) -> None:
    judge = OpenAIJudge(
        model="small", base_url="http://127.0.0.1:9/v1", attempts=2, longest_wait=0.01, cache=str(tmp_path / "c.sqlite")
    )
    with pytest.raises(ConnectionError, match="cannot be used: no connection"):
        judge.preflight()


@pytest.mark.parametrize(
    ("status", "error"), [(400, ConnectionError), (401, PermissionError), (403, PermissionError), (404, LookupError)]
)
def test_preflight_fails_at_once_in_the_servers_words(judge_for: Any, status: int, error: type[Exception]) -> None:
    judge, server = judge_for(always(Answer("no such luck", status=status)), structured="never")
    with pytest.raises(error, match=f"HTTP {status}: no such luck"):
        judge.preflight()
    assert len(server.requests) == 1


def test_an_empty_account_is_not_tried_again(judge_for: Any) -> None:
    empty = Answer(body=b'{"error": {"message": "quota used up", "code": "insufficient_quota"}}', status=429)
    judge, server = judge_for(always(empty), structured="never")
    assert "quota used up" in judge.grade(gradings(1))[0].reason
    assert len(server.requests) == 1


def test_a_key_refused_half_way_keeps_what_came(judge_for: Any) -> None:
    judge, server = judge_for(lambda n, _: Answer("A") if n < 5 else Answer("key revoked", status=401), concurrency=1)
    with pytest.raises(PermissionError, match="key revoked"):
        judge.grade(gradings(10))
    assert len(server.requests) == 6
    server.behaviour = always(Answer("A"))
    assert [v.value for v in judge.grade(gradings(10))] == ["CORRECT"] * 10
    assert len(server.requests) == 11


def test_one_refused_item_does_not_stop_the_others(judge_for: Any) -> None:
    def picky(number: int, request: dict[str, Any]) -> Answer:
        too_long = "number 3?" in request["messages"][0]["content"]
        return Answer("prompt too long", status=400) if too_long else Answer("A")

    judge, server = judge_for(picky)
    verdicts = judge.grade(gradings(6))
    assert [verdict.value for verdict in verdicts] == ["CORRECT"] * 3 + [None] + ["CORRECT"] * 2
    assert "prompt too long" in verdicts[3].reason
    assert all("response_format" in request for request in server.requests if "number 3?" not in str(request))


def test_structured_replies_fall_back_to_text_where_refused(judge_for: Any) -> None:
    def refuses(number: int, request: dict[str, Any]) -> Answer:
        return Answer("response_format unknown", status=400) if "response_format" in request else Answer("A")

    judge, server = judge_for(refuses, concurrency=1)
    assert [verdict.value for verdict in judge.grade(gradings(4))] == ["CORRECT"] * 4
    assert len(server.requests) == 5, "the schema is offered once, not with every call"


def test_structured_replies_are_asked_for_by_schema(judge_for: Any) -> None:
    judge, server = judge_for(always(Answer('{"grade": "B"}')))
    assert judge.grade(gradings(1))[0].value == "INCORRECT"
    schema = server.requests[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["grade"]["enum"] == ["A", "B", "C"]


def test_max_calls_stops_cleanly_and_keeps_what_was_scored(judge_for: Any) -> None:
    judge, server = judge_for(always(Answer("A")), max_calls=7, concurrency=4)
    verdicts = judge.grade(gradings(20))
    assert sum(verdict.value == "CORRECT" for verdict in verdicts) == 7 == len(server.requests)
    assert {verdict.reason for verdict in verdicts if verdict.value is None} == {"stopped at max_calls=7"}


def test_max_cost_is_never_passed(judge_for: Any) -> None:
    prices = {"small": {"input": 1.0, "output": 10.0}}
    judge, server = judge_for(always(Answer("A")), max_cost=0.01, prices=prices, concurrency=4)
    verdicts = judge.grade(gradings(60))
    scored = sum(verdict.value is not None for verdict in verdicts)
    assert 5 < scored < 60
    assert scored == len(server.requests)
    assert judge.usage.cost is not None
    assert 0 < judge.usage.cost <= 0.01
    assert "stopped at max_cost=0.01" in verdicts[-1].reason


def test_max_cost_needs_a_price() -> None:
    with pytest.raises(ValueError, match="max_cost needs a price"):
        OpenAIJudge(model="small", max_cost=1.0)


def test_an_unknown_price_is_unknown_and_a_dated_name_finds_its_price(judge_for: Any) -> None:
    judge, _ = judge_for(always(Answer("A")))
    assert judge.forecast(gradings(3)).cost is None
    assert "price unknown" in str(judge.forecast(gradings(3)))
    judge.grade(gradings(1))
    assert judge.usage.cost is None
    dated = OpenAIJudge(model="big-2025-04-14", prices={"big": {"input": 2.0, "output": 8.0}})
    assert dated.forecast(gradings(1)).cost is not None


def test_the_estimate_comes_before_the_first_call(judge_for: Any, capsys: pytest.CaptureFixture[str]) -> None:
    judge, _ = judge_for(always(Answer("A")), prices={"small": {"input": 1.0, "output": 2.0}})
    forecast = judge.forecast(gradings(3))
    assert (forecast.num_gradings, forecast.num_cached, forecast.num_calls) == (3, 0, 3)
    judge.grade(gradings(3))
    assert str(forecast) in capsys.readouterr().err
    assert judge.forecast(gradings(4)).num_calls == 1


def test_no_key_for_the_hosted_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge = OpenAIJudge(model="small", cache=str(tmp_path / "c.sqlite"))
    with pytest.raises(PermissionError, match="set the environment variable OPENAI_API_KEY"):
        judge.preflight()


def test_the_key_is_sent_and_never_stored(judge_for: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-123")
    judge, _ = judge_for(always(Answer("A")), key_variable="MY_KEY")
    verdict = judge.grade(gradings(1))[0]
    assert "secret-123" not in json.dumps(dict(verdict.details)) + judge.identity
    assert b"secret-123" not in Path(judge.cache).read_bytes()


def test_thousand_calls_at_concurrency_64(judge_for: Any) -> None:
    faults = {3: Answer("busy", status=429), 50: Answer("oops", status=500), 77: Answer(body=b"{")}
    judge, server = judge_for(lambda n, _: faults.get(n, Answer("A")), concurrency=64)
    verdicts = judge.grade(gradings(1000))
    assert [verdict.value for verdict in verdicts] == ["CORRECT"] * 1000
    assert len(set(server.prompts)) == 1000
    assert len(server.requests) == 1003 == judge.usage.calls
    assert server.most_under_way <= 64


def test_works_inside_a_running_event_loop(judge_for: Any) -> None:
    judge, _ = judge_for(always(Answer("A")))

    async def notebook() -> str | None:
        return judge.grade(gradings(1))[0].value

    assert asyncio.run(notebook()) == "CORRECT"


def test_a_server_killed_half_way_and_started_again_loses_nothing(tmp_path: Path) -> None:
    items = gradings(40)
    settings = {"attempts": 2, "longest_wait": 0.01, "concurrency": 4, "cache": str(tmp_path / "c.sqlite")}
    with serving(lambda n, _: Answer("A", drop=n >= 20)) as server:
        port = server.server_port
        judge = OpenAIJudge(model="small", base_url=server.url, **settings)
        before = judge.grade(items)
    kept = sum(verdict.value is not None for verdict in before)
    assert kept == 20
    with serving(lambda n, _: Answer("A"), port) as server:
        after = OpenAIJudge(model="small", base_url=server.url, **settings).grade(items)
        assert len(server.requests) == 20
    assert all(verdict.value == "CORRECT" for verdict in after)
